"""What the API takes, as OpenAI's: a field that we cannot honour is refused, not ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 8
MOST_STOPS = 8

Stop = Annotated[str, Field(min_length=1, max_length=200)]
REFUSED: dict[str, tuple[Any, ...]] = {  # field: the values that ask for nothing
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
}


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """What every failure looks like."""

    error: Problem


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # "1" is no number, 1 is not true


class StreamOptions(Strict):
    include_usage: bool = False


def _tell_that_null_is_unset(schema: dict[str, Any]) -> None:
    for name, rule in schema["properties"].items():
        if name not in schema.get("required", ()) and {"type": "null"} not in rule.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [rule, {"type": "null"}]}


class Request(Strict):
    """What both endpoints share. Unset limits mean: as long as the context, all tokens, a fresh seed."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_tell_that_null_is_unset)

    model: str = ""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | list[Stop] | None = None
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: Any) -> Any:
        """OpenAI's clients may send null for any option."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _honest(self) -> "Request":
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value not in REFUSED[name]:
                raise ValueError(f"{name} is not supported by this server")
        if len(self.stops) > MOST_STOPS:
            raise ValueError(f"stop takes at most {MOST_STOPS} strings")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Request):
    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=1)  # OpenAI's default

    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
