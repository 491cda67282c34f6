// The chat page over /v1/chat/completions. The conversation lives in this tab and nowhere else.
import { markdown } from "/static/markdown.js";

const at = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const talk = []; // {role, content, calls, node, failed}
let writing = null; // the AbortController of the answer being written

// -- models and settings -------------------------------------------------------------------------------------------

async function problem(answer) {
  try { return (await answer.json()).error.message; } catch { return `The server answered ${answer.status}.`; }
}

async function loadModels() {
  const answer = await fetch("/v1/models").catch(() => null); // the server may be starting again
  if (answer?.status === 401) return location.reload();
  const models = answer?.ok ? (await answer.json()).data : [];
  at("model").replaceChildren(...models.map((m) => make("option", { value: m.id }, `${m.stage} ${m.tag}, step ${m.step}`)));
  const asked = new URLSearchParams(location.search).get("model");
  if (models.some((m) => m.id === asked)) at("model").value = asked;
  at("empty").textContent = models.length ? "Say something to the model that this run trained." : answer?.ok ? "There is no model to talk to yet: no checkpoint is whole, or the run still trains. This page looks again every 10 seconds." : "The server cannot be reached. This page tries again every 10 seconds.";
  at("send").disabled = !models.length;
  if (!models.length) setTimeout(loadModels, 10_000);
}
at("temperature").addEventListener("input", () => { at("temperature-now").textContent = at("temperature").value; });

// -- messages ------------------------------------------------------------------------------------------------------

function button(label, action) {
  const made = make("button", { type: "button" }, label);
  made.addEventListener("click", action);
  return made;
}

function add(role, content) {
  const message = { role, content, calls: [], failed: "" };
  const text = make("div", { class: "text" }), calls = make("div", { class: "calls" }), actions = make("div", { class: "actions" });
  message.node = make("li", { class: `message ${role}`, "aria-label": role === "user" ? "You" : "The model" }, text, calls, actions);
  if (role === "user") actions.append(button("Edit", () => edit(message)));
  else actions.append(
    button("Copy", async (event) => {
      await navigator.clipboard.writeText(message.content);
      event.target.textContent = "Copied";
      setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
    }),
    button("Regenerate", () => { if (!writing) { cut(talk.indexOf(message)); answer(); } }));
  talk.push(message);
  at("messages").append(message.node);
  at("empty").hidden = true;
  draw(message);
  return message;
}

function draw(message) {
  const text = message.node.querySelector(".text");
  if (message.role === "user") text.textContent = message.content;
  else text.replaceChildren(markdown(message.content));
  if (message.failed) text.append(make("p", { class: "failed" }, message.failed));
  message.node.querySelector(".calls").textContent = message.calls.map((c) => `calculator: ${c.expression} = ${c.result}`).join("\n");
}

function cut(from) {
  for (const message of talk.splice(from)) message.node.remove();
  at("empty").hidden = talk.length > 0;
}

function edit(message) {
  writing?.abort();
  at("words").value = message.content;
  cut(talk.indexOf(message));
  grow();
  at("words").focus();
}

// -- answers -------------------------------------------------------------------------------------------------------

function busy(controller) {
  writing = controller;
  at("stop").hidden = !controller;
  at("send").hidden = !!controller;
}

function announce(text) { // for screen readers
  at("announce").textContent = text;
}

async function answer() {
  const topK = Number(at("top-k").value), controller = new AbortController();
  const body = {
    model: at("model").value, stream: true, temperature: Number(at("temperature").value),
    messages: talk.filter((m) => !m.failed).map(({ role, content }) => ({ role, content })),
    ...(topK > 0 ? { top_k: topK } : {}),
  };
  const message = add("assistant", "");
  message.node.classList.add("writing");
  busy(controller);
  const box = at("talk");
  let follow = true, frame = null;
  const scrolled = () => { follow = box.scrollHeight - box.scrollTop - box.clientHeight < 80; };
  const render = () => { frame = null; draw(message); if (follow) box.scrollTop = box.scrollHeight; };
  box.addEventListener("scroll", scrolled, { passive: true });
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: controller.signal,
    });
    if (response.status === 401) return location.reload();
    if (!response.ok) throw new Error(await problem(response));
    let whole = false;
    for await (const chunk of chunks(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      message.content += choice.delta.content ?? "";
      message.calls.push(...(choice.delta.calculator ?? []));
      whole ||= choice.finish_reason !== null;
      frame ??= requestAnimationFrame(render);
    }
    if (!whole) throw new Error("The server went away in the middle of the answer.");
  } catch (error) {
    if (error.name !== "AbortError") message.failed = error instanceof TypeError ? "The server cannot be reached." : error.message;
  } finally {
    box.removeEventListener("scroll", scrolled);
    cancelAnimationFrame(frame);
    message.node.classList.remove("writing");
    if (talk.includes(message)) render();
    if (writing === controller) busy(null);
    announce(message.failed ? "The answer failed." : "The answer is complete.");
  }
}

async function* chunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part; !(part = await reader.read()).done; ) {
    text += part.value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) if (event.startsWith("data: ") && event !== "data: [DONE]") yield JSON.parse(event.slice(6));
  }
}

// -- keys and buttons ----------------------------------------------------------------------------------------------

function grow() {
  at("words").style.height = "auto";
  at("words").style.height = `${at("words").scrollHeight + 2}px`;
}

function send() {
  const words = at("words").value.trim();
  if (!words || writing || at("send").disabled) return;
  if (talk.length && (talk.at(-1).failed || talk.at(-1).role === "user")) cut(talk.length - (talk.at(-1).role === "user" ? 1 : 2));
  at("words").value = "";
  grow();
  add("user", words);
  at("talk").scrollTop = at("talk").scrollHeight;
  answer();
}

document.querySelector("#composer form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("words").addEventListener("input", grow);
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !at("words").value) {
    const last = talk.findLast((m) => m.role === "user");
    if (last) { event.preventDefault(); edit(last); }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") writing?.abort();
  if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) { event.preventDefault(); restart(); }
});
function restart() {
  writing?.abort();
  cut(0);
  at("words").focus();
}
at("stop").addEventListener("click", () => writing?.abort());
at("new").addEventListener("click", restart);
loadModels();
