"""The child that serves a checkpoint with upstream's own code; `homerun/serve/upstream_engine.py` is its parent.

It runs as `python -c <this text> SOURCE TAG STEP` in a checkout of the run's commit, under that checkout's own Python
(3.10 and newer), where homerun need not be installed. JSON lines come in on stdin and go out on the old stdout:

    in   {"id": 1, "prompt": [...], "max_tokens": 9, "temperature": 1.0, "top_k": null, "seed": 7}
         {"cancel": 1}      {"logits": [...]}
    out  {"ready": true}    {"id": 1, "token": 42}    {"id": 1, "end": "stop"}    {"logits": [...]}

Answers take turns, one token each, on the main thread: upstream's calculator needs SIGALRM, which no other has.
"""

import contextlib
import json
import os
import queue
import sys
import threading

AT_ONCE = 8  # each has its own key/value cache


def main():
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what upstream prints must not meet the protocol

    def say(**message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    inbox: queue.Queue = queue.Queue()
    threading.Thread(target=listen, args=(inbox,), daemon=True).start()

    import torch
    from nanochat import common
    from nanochat.checkpoint_manager import load_model
    from nanochat.engine import Engine

    source, tag, step = sys.argv[1:4]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = load_model(source, device, phase="eval", model_tag=tag, step=int(step))
    if device.type == "cpu":
        for parameter in model.parameters():  # October 2025's code leaves a GPU's bfloat16 as it is
            parameter.data = parameter.data.float()
    # Since March 2026 upstream casts by itself; before, its own chat wrapped generation like this.
    casts = hasattr(common, "COMPUTE_DTYPE") or device.type != "cuda"
    autocast = contextlib.nullcontext() if casts else torch.amp.autocast("cuda", dtype=torch.bfloat16)
    engine = Engine(model, tokenizer)
    stops = {tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id()}
    say(ready=True)

    waiting: list = []  # requests
    running: dict = {}  # id: [generator, tokens left]
    with autocast:
        while True:
            while not inbox.empty() or not (waiting or running):
                message = inbox.get()
                if "cancel" in message:
                    running.pop(message["cancel"], None)
                    waiting = [request for request in waiting if request["id"] != message["cancel"]]
                elif "logits" in message:
                    with torch.inference_mode():
                        logits = model(torch.tensor([message["logits"]], device=device))
                    say(logits=logits[0, -1].float().tolist())
                else:
                    waiting.append(message)
            while waiting and len(running) < AT_ONCE:
                request = waiting.pop(0)
                names = ("max_tokens", "temperature", "top_k", "seed")
                answer = engine.generate(request["prompt"], num_samples=1, **{name: request[name] for name in names})
                running[request["id"]] = [answer, request["max_tokens"]]
            for number, state in list(running.items()):
                column = next(state[0], None)
                token = column[0][0] if column is not None else None
                end = "stop" if token is None or token in stops else None
                if end is None:
                    say(id=number, token=token)
                    state[1] -= 1
                    end = "length" if state[1] <= 0 else None
                if end:
                    del running[number]
                    say(id=number, end=end)


def listen(inbox):
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(0)  # the parent is gone


main()
