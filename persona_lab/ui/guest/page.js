// The guests' chat. Everything that came from a model or a person goes in as text, never as HTML.
"use strict";
const at = (id) => document.getElementById(id);
let busy = false, bots = [], blind = false, answered = false;

function tell(text, bad = false) {
  at("told").textContent = text;
  at("told").className = bad ? "bad" : "";
}

function turn(pane, who, text, error) {
  const box = document.createElement("div");
  box.className = "turn " + who;
  box.textContent = text;
  pane.append(box);
  if (error) fault(pane, error);
  return box;
}

function fault(pane, text) {
  const line = document.createElement("p");
  line.className = "error";
  line.textContent = text;
  pane.append(line);
}

function working(on) {
  busy = on;
  at("send").hidden = on;
  at("stop").hidden = !on;
  at("new").disabled = at("speaker").disabled = on;
  at("vote").hidden = on || !blind || !answered;
}

function draw(state) {
  document.title = "Chat with " + state.name;
  at("name").textContent = state.name;
  at("picture").hidden = !state.picture;
  if (state.picture) at("picture").src = state.picture;
  blind = state.blind;
  at("hint").hidden = !blind;
  at("choosing").hidden = state.speakers.length < 2;
  at("speaker").replaceChildren(...state.speakers.map((name, number) => new Option(name, number)));
  at("speaker").value = state.speaker;
  at("text").maxLength = state.longest;
  bots = state.panes.map((turns, number) => {
    const pane = document.createElement("section");
    pane.className = "pane";
    if (blind) {
      const head = document.createElement("h2");
      head.textContent = "Reply " + "AB"[number];
      pane.append(head);
    }
    for (const each of turns) turn(pane, each.who, each.text, each.error);
    return pane;
  });
  at("panes").replaceChildren(...bots);
  answered = false;
  working(state.busy);
  tell(state.paused, Boolean(state.paused));
  // a reply of before a reload, or of another window: look again until it is done
  if (state.busy) setTimeout(() => ask("state").then((reply) => reply.json()).then(draw).catch(() => {}), 2000);
}

async function ask(path, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const reply = await fetch("/guest/" + path, request);
  if (!reply.ok) {
    const said = await reply.json().catch(() => ({}));
    throw new Error(said.position ? `Busy, position ${said.position}. ${said.error}` : said.error || "No answer.");
  }
  return reply;
}

async function say(text) {
  working(true);
  tell("");
  let reply;
  try {
    reply = await ask("say", { text });
  } catch (error) {
    working(false);
    tell(error.message, true);
    return;
  }
  at("text").value = "";
  const open = bots.map((pane) => {
    turn(pane, "user", text);
    const box = turn(pane, "assistant", "");
    box.classList.add("waiting");
    return box;
  });
  let failed = false;
  const heard = (line) => {
    if (line.position) tell(`Busy, position ${line.position}`);
    if (line.position === 0) tell("");
    if (line.pane !== undefined) {
      if (line.text) open[line.pane].textContent += line.text;
      if (line.error) { failed = true; fault(bots[line.pane], line.error); }
    } else if (line.error) {
      failed = true;
      tell(line.error, true);
    }
    window.scrollTo(0, document.body.scrollHeight);
  };
  try {
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) heard(JSON.parse(line));
    }
  } catch {
    failed = true;
    tell("The connection was lost. Reload the page.", true);
  }
  for (const box of open) box.classList.remove("waiting");
  answered = !failed;
  working(false);
}

at("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (text && !busy) say(text);
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("say").requestSubmit();
  }
});
at("stop").addEventListener("click", () => ask("stop", {}).catch((error) => tell(error.message, true)));
async function anew() {
  try {
    draw(await (await ask("new", { speaker: Number(at("speaker").value) || 0 })).json());
  } catch (error) {
    tell(error.message, true);
  }
}
at("new").addEventListener("click", anew);
at("speaker").addEventListener("change", anew);
at("vote").addEventListener("click", async (event) => {
  const outcome = event.target.dataset.outcome;
  if (!outcome) return;
  try {
    await ask("vote", outcome === "win" ? { outcome, winner: Number(event.target.dataset.winner) } : { outcome });
    answered = false;
    at("vote").hidden = true;
    tell("Thank you, your vote counts. Go on, or begin a new conversation.");
  } catch (error) {
    tell(error.message, true);
  }
});
ask("state").then((reply) => reply.json()).then(draw).catch((error) => tell(error.message, true));
