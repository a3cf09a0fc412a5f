// Keeps a page fresh: told by /events that something has changed, it fetches the page anew and takes over the sections
// that differ. Without it the page says the same, and is reloaded by hand.
"use strict";

const body = document.body;
const base = body.dataset.base;
const live = document.getElementById("live");
let stamp = body.dataset.stamp;
let stream = null;
let fetching = false;

function logIn() {
  const form = document.getElementById("login");
  if (!form || location.hash.length < 2) return;
  document.getElementById("token").value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  form.submit();
}

// What a person has begun is not taken from under their hands.
function isInUse(section) {
  const focus = document.activeElement;
  if (section.contains(focus) && focus.matches("input, select, textarea, button")) return true;
  const changed = (input) => input.checked !== input.defaultChecked || input.value !== input.defaultValue;
  return [...section.querySelectorAll("input, textarea")].some(changed);
}

// A file is read into the field that it is for, and seen there before it is sent. The document listens, since a section
// that is taken over is made of new elements; what only a script can do is shown once there is one.
function readFiles() {
  document.addEventListener("change", async ({ target }) => {
    if (target.dataset.into && target.files.length) document.getElementById(target.dataset.into).value = await target.files[0].text();
  });
  document.documentElement.classList.add("scripted");
}

function takeOver(old, fresh) {
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const key = focused && (focused.id ? `#${CSS.escape(focused.id)}` : focused.href ? `a[href="${CSS.escape(focused.getAttribute("href"))}"]` : null);
  for (const details of fresh.querySelectorAll("details[id]")) {
    const before = document.getElementById(details.id);
    if (before && before.open) details.open = true;
  }
  old.replaceWith(fresh);
  const again = key && fresh.querySelector(key);
  if (again) again.focus({ preventScroll: true });
}

function update(page) {
  const inner = document.getElementById("body");
  const fresh = page.getElementById("body");
  if (!fresh) return location.reload();
  const said = document.getElementById("said");
  const newSaid = page.getElementById("said").textContent;
  if (said.textContent !== newSaid) said.textContent = newSaid;
  const ids = (within) => [...within.children].map((child) => child.id).join(" ");
  if (ids(inner) !== ids(fresh)) {
    if (isInUse(inner)) return wait();
    return takeOver(inner, document.importNode(fresh, true));
  }
  for (const section of [...fresh.children]) {
    const old = document.getElementById(section.id);
    if (!old || old.isEqualNode(section)) continue;
    if (isInUse(old)) wait();
    else takeOver(old, document.importNode(section, true));
  }
}

function wait() {
  live.textContent = "There is news. Reload the page to see it.";
}

async function refresh(told) {
  if (fetching) return;
  fetching = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.redirected) return location.reload();
    live.textContent = `Live. Last change at ${new Date().toLocaleTimeString()}.`;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    stamp = page.body.dataset.stamp || told;
    update(page);
  } catch {
    live.textContent = "The dashboard does not answer.";
  } finally {
    fetching = false;
  }
}

function listen() {
  if (stream || document.hidden) return;
  stream = new EventSource(`${base}/events`);
  stream.addEventListener("open", () => (live.textContent = "Live."));
  stream.addEventListener("stamp", (event) => {
    if (event.data !== stamp) refresh(event.data);
  });
  stream.addEventListener("error", () => {
    live.textContent = "The dashboard does not answer; what is shown may be old.";
    // Closed for good: logged out, or another one was started.
    if (stream && stream.readyState === EventSource.CLOSED) stream = null;
  });
}

// A browser opens six connections to a server: pages that nobody looks at hold none.
function hush() {
  if (stream) stream.close();
  stream = null;
}

logIn();
readFiles();
if (base && stamp) {
  listen();
  document.addEventListener("visibilitychange", () => (document.hidden ? hush() : listen()));
  addEventListener("pagehide", hush);
}
