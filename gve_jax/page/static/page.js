// The page of an index: what is searched for is in `query`, what was found in `hits`.

const $ = (id) => document.getElementById(id);
const PAGE = 24; // hits that are shown at first, and added by "More hits"
const MOST = 200; // hits of an answer
const POLL = 5000; // ms between looks for changes of the index
const POINTS = 500; // of the time line

let query = {}; // text, and path with start_sec and end_sec, or upload
let hits = [];
let count = PAGE;
let version = null;
let asked = 0; // requests so far: an answer that is not of the last one is dropped
let maxUpload = Infinity; // bytes
let shown = null; // {hit, start, end}: what the player shows

// ---- the server ---------------------------------------------------------------------------------

async function call(path, body, type = "application/json") {
  const options = body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: is the command still running?");
  }
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error.message);
  return data;
}

const post = (path, value) => call(path, JSON.stringify(value));
const urlOf = (folder, path) => `/${folder}/${path.split("/").map(encodeURIComponent).join("/")}`;

function stripOf(path, start, end) {
  return `${urlOf("thumbnails", path)}?start_sec=${start}&end_sec=${end}`;
}

// ---- searching ----------------------------------------------------------------------------------

function readFilters() {
  const filters = {};
  for (const field of document.querySelectorAll(".filters [name]")) {
    const text = field.value.trim();
    if (!text) continue;
    if (field.type === "number") filters[field.name] = Number(text);
    else if (field.name === "where") filters.where = text.split(";").map((one) => one.trim()).filter(Boolean);
    else filters[field.name] = text;
  }
  const active = Object.keys(filters).length;
  $("active").textContent = active ? `(${active})` : "";
  return filters;
}

async function search({ keep = false } = {}) {
  const text = $("text").value.trim();
  query = { ...query, text: text || undefined };
  if (!text && !query.path && !query.upload) return show([], "");
  if (!keep) count = PAGE;
  const mine = ++asked;
  if (!keep) say("Searching …");
  const group_by = $("group").checked ? "video" : "moment";
  const began = performance.now();
  try {
    const answer = await post("/api/search", { ...query, k: count, group_by, filters: readFilters() });
    if (mine !== asked) return;
    version = answer.version;
    const seconds = ((performance.now() - began) / 1000).toFixed(2);
    const number = answer.data.length;
    const text = number === 1 ? "1 hit" : `${number} hits`;
    show(answer.data, number ? `${text} in ${seconds} s` : "No moment fulfils the filters.");
  } catch (error) {
    if (mine === asked) say(error.message, true);
  }
}

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", failed);
}

function setMedia(fields, name, preview = null) {
  if ($("preview").src.startsWith("blob:")) URL.revokeObjectURL($("preview").src);
  query = fields;
  $("media").hidden = !name;
  $("media-name").textContent = name || "";
  $("preview").hidden = !preview;
  if (preview) $("preview").src = preview;
}

async function upload(file) {
  if (file.size > maxUpload) {
    return say(`${file.name} is larger than ${Math.floor(maxUpload / 2 ** 20)} MiB (--max-upload).`, true);
  }
  const mine = ++asked;
  say(`Reading ${file.name} …`);
  try {
    const { upload, kind } = await call("/api/upload", file, "application/octet-stream");
    if (mine !== asked) return;
    $("text").value = ""; // a text that is added afterwards is mixed with the file
    setMedia({ upload }, file.name, kind === "image" ? URL.createObjectURL(file) : null);
    await search();
  } catch (error) {
    if (mine === asked) say(`${file.name}: ${error.message}`, true);
  }
}

function searchLike(hit, start, end) {
  close();
  $("text").value = "";
  const fields = hit.kind === "image" ? { path: hit.path } : { path: hit.path, start_sec: start, end_sec: end };
  setMedia(fields, label(hit, start, end));
  scrollTo(0, 0);
  return search();
}

// ---- hits ---------------------------------------------------------------------------------------

function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, (tenths % 600) / 10];
  const text = rest.toFixed(tenths % 10 ? 1 : 0).padStart(tenths % 10 ? 4 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${text}` : `${minutes}:${text}`;
}

function label(hit, start, end) {
  return hit.kind === "image" ? hit.path : `${hit.path}, ${clock(start)} to ${clock(end)}`;
}

function show(found, text) {
  const focused = [...document.querySelectorAll("#hits article")].indexOf(document.activeElement);
  hits = found;
  say(text);
  const best = Math.max(...hits.map((hit) => hit.score), 0);
  $("hits").replaceChildren(...hits.map((hit) => card(hit, best)));
  $("more").hidden = hits.length < count || count >= MOST;
  if (focused >= 0) focus(Math.min(focused, hits.length - 1));
}

function card(hit, best) {
  const part = $("hit").content.cloneNode(true);
  const find = (name) => part.querySelector(name);
  const { start_sec: start, end_sec: end } = hit;
  find("article").classList.add(hit.kind);
  find("article").setAttribute("aria-label", label(hit, start, end));
  find("img").src = stripOf(hit.path, start, end);
  find(".play").setAttribute("aria-label", `Play ${label(hit, start, end)}`);
  find(".play").addEventListener("click", () => open(hit, start, end));
  find(".name").textContent = hit.path;
  find(".time").textContent = hit.kind === "image" ? "image" : `${clock(start)} – ${clock(end)} of ${clock(hit.duration)}`;
  find(".score").textContent = hit.score.toFixed(3);
  find("meter").value = best > 0 ? Math.max(0, hit.score / best) : 0;
  find("meter").setAttribute("aria-label", "score, relative to the best hit");
  find(".metadata").textContent = Object.entries(hit.metadata)
    .map(([key, value]) => `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`)
    .join(" · ");
  if (hit.kind === "video") {
    for (const moment of (hit.moments || []).slice(1)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = clock(moment.start_sec);
      button.title = `Play ${clock(moment.start_sec)} to ${clock(moment.end_sec)}, score ${moment.score.toFixed(3)}`;
      button.addEventListener("click", () => open(hit, moment.start_sec, moment.end_sec));
      find(".moments").append(button);
    }
  }
  find(".like").addEventListener("click", () => searchLike(hit, hit.best_start_sec, hit.best_end_sec));
  return part;
}

function focus(number) {
  const article = document.querySelectorAll("#hits article")[number];
  if (!article) return;
  article.focus({ preventScroll: true });
  article.scrollIntoView({ block: "nearest" });
}

// ---- player -------------------------------------------------------------------------------------

function open(hit, start, end) {
  const isImage = hit.kind === "image";
  shown = { hit, start, end, stop: end };
  $("player-name").textContent = label(hit, start, end);
  $("problem").hidden = true;
  $("again").hidden = isImage;
  $("line").hidden = true;
  const number = hits.indexOf(hit);
  $("previous").disabled = number <= 0;
  $("next").disabled = number < 0 || number === hits.length - 1;
  const screen = document.createElement(isImage ? "img" : "video");
  screen.addEventListener("error", () => failed(screen));
  if (isImage) {
    screen.alt = hit.path;
    screen.src = urlOf("media", hit.path);
  } else {
    screen.controls = true;
    screen.muted = true; // a browser starts no sound by itself
    screen.playsInline = true;
    screen.src = `${urlOf("media", hit.path)}#t=${start}`;
    screen.addEventListener("loadedmetadata", () => (screen.currentTime = shown.start));
    screen.addEventListener("play", () => watch(screen));
    screen.addEventListener("timeupdate", () => drawHead(screen.currentTime));
    screen.play().catch(() => {}); // the user may start it
    drawLine(hit);
  }
  $("screen").replaceChildren(screen);
  if (!$("player").open) $("player").showModal();
}

// Stops at the end of the moment, to the frame; whoever then presses play goes on.
function watch(video) {
  const step = () => {
    if (video.paused || !video.isConnected) return;
    if (video.currentTime >= shown.stop - 0.02) {
      video.pause();
      shown.stop = Infinity;
    } else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

async function failed(screen) {
  if (!screen.isConnected) return;
  $("problem").hidden = false;
  $("problem").textContent = "This browser cannot play the file; these are frames of the moment.";
  const strip = document.createElement("img");
  strip.src = stripOf(shown.hit.path, shown.start, shown.end);
  $("screen").replaceChildren(strip);
  const answer = await fetch(urlOf("media", shown.hit.path), { headers: { Range: "bytes=0-0" } });
  if (!answer.ok) $("problem").textContent = (await answer.json()).error.message;
}

function close() {
  if ($("player").open) $("player").close();
}

function seek(seconds) {
  const video = document.querySelector("#screen video");
  if (!video) return;
  shown.stop = Infinity;
  video.currentTime = seconds;
  video.play().catch(() => {});
}

function step(by) {
  const hit = hits[hits.indexOf(shown.hit) + by];
  if (hit) open(hit, hit.start_sec, hit.end_sec);
}

// ---- time line ----------------------------------------------------------------------------------

async function drawLine(hit) {
  let data;
  try {
    ({ data } = await post("/api/timeline", { ...query, timeline_path: hit.path }));
  } catch {
    return; // the player works without it
  }
  if (shown.hit !== hit || data.length < 2) return;
  const end = Math.max(hit.duration, data.at(-1).end_sec);
  const scores = data.map((moment) => moment.score);
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  // The best moment at each of some points in time: a long video has more moments than pixels.
  const points = new Array(POINTS).fill(least);
  for (const { start_sec, end_sec, score } of data) {
    const last = Math.min(POINTS - 1, Math.ceil((end_sec / end) * POINTS) - 1);
    for (let at = Math.floor((start_sec / end) * POINTS); at <= last; at++) points[at] = Math.max(points[at], score);
  }
  const y = (score) => (92 - (84 * (score - least)) / (most - least || 1)).toFixed(1);
  const x = (at) => ((1000 * at) / POINTS).toFixed(1);
  $("curve").setAttribute("d", points.map((score, at) => `${at ? "L" : "M"}${x(at)} ${y(score)}H${x(at + 1)}`).join(""));
  $("span").setAttribute("x", (1000 * shown.start) / end);
  $("span").setAttribute("width", Math.max(2, (1000 * (shown.end - shown.start)) / end));
  $("length").textContent = clock(end);
  $("pointed").textContent = "";
  $("line").hidden = false;
  shown.length = end;
  drawHead(shown.start);
}

function drawHead(seconds) {
  if (shown?.length) $("head").setAttribute("d", `M${(1000 * seconds) / shown.length} 0v100`);
}

function pointedAt(event) {
  const box = $("chart").getBoundingClientRect();
  return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * shown.length;
}

$("chart").addEventListener("click", (event) => seek(pointedAt(event)));
$("chart").addEventListener("pointermove", (event) => ($("pointed").textContent = clock(pointedAt(event))));
$("chart").addEventListener("pointerleave", () => ($("pointed").textContent = ""));

// ---- controls -----------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("reset").addEventListener("click", () => {
  for (const field of document.querySelectorAll(".filters [name]")) field.value = "";
  search();
});
$("group").addEventListener("change", () => search());
$("filters").addEventListener("change", () => search());
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files.length) upload($("file").files[0]);
  $("file").value = "";
});
$("clear").addEventListener("click", () => {
  setMedia({}, null);
  $("text").focus();
  search();
});
$("more").addEventListener("click", () => {
  count = Math.min(MOST, count + PAGE);
  search({ keep: true });
});
$("close").addEventListener("click", close);
$("player").addEventListener("close", () => {
  const number = hits.indexOf(shown.hit);
  $("screen").replaceChildren(); // ends its download
  focus(number);
});
$("player").addEventListener("click", (event) => {
  if (event.target === $("player")) close(); // beside it
});
$("again").addEventListener("click", () => open(shown.hit, shown.start, shown.end));
$("like").addEventListener("click", () => searchLike(shown.hit, shown.start, shown.end));
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches("input, select, textarea");
  if ($("player").open) {
    if (event.target.matches("video")) return; // its own keys
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    return;
  }
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
    return;
  }
  if (event.key === "Escape" && event.target !== $("text")) {
    $("text").focus();
    return;
  }
  if (typing && !(event.target === $("text") && event.key === "ArrowDown")) return;
  const articles = [...document.querySelectorAll("#hits article")];
  const at = articles.findIndex((article) => article.contains(document.activeElement));
  const columns = getComputedStyle($("hits")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowDown: columns, ArrowUp: -columns, ArrowRight: 1, ArrowLeft: -1 };
  if (event.key in steps && articles.length) {
    event.preventDefault();
    const next = at < 0 ? 0 : at + steps[event.key];
    if (next < 0) $("text").focus();
    else focus(Math.min(next, articles.length - 1));
  } else if (event.key === "Enter" && document.activeElement === articles[at]) {
    event.preventDefault();
    open(hits[at], hits[at].start_sec, hits[at].end_sec);
  }
});

// ---- files that are dropped or pasted -----------------------------------------------------------

const hasFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
let inside = 0; // dragenter and dragleave come for every element

document.addEventListener("dragenter", (event) => {
  if (hasFiles(event)) $("drop").hidden = ++inside === 0;
});
document.addEventListener("dragleave", (event) => {
  if (hasFiles(event)) $("drop").hidden = --inside <= 0;
});
document.addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  close();
  if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (!file) return;
  event.preventDefault();
  upload(file);
});

// ---- changes of the index -----------------------------------------------------------------------

async function look() {
  if (document.hidden) return;
  try {
    const index = await call("/api/index");
    maxUpload = index.max_upload;
    const bad = index.unreadable ? `, ${index.unreadable.toLocaleString("en")} unreadable` : "";
    $("size").textContent =
      `${index.media}: ${index.moments.toLocaleString("en")} moments of ${index.files.toLocaleString("en")} files${bad}`;
    if (version !== null && version !== index.version && hits.length && !$("player").open) search({ keep: true });
    else if (version === null) version = index.version;
  } catch (error) {
    $("size").textContent = error.message;
  }
}

setInterval(look, POLL);
document.addEventListener("visibilitychange", look);
await look();
const given = new URLSearchParams(location.search).get("q"); // a bookmark: /?q=a+dog
if (given) {
  $("text").value = given;
  search();
}
