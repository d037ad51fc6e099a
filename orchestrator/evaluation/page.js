"use strict";
// Shows the questions. Every text of the data is set by textContent: the page's policy refuses strings as markup anyway.
(() => {
  const BATCH = 100;
  const data = JSON.parse(document.getElementById("data").textContent);
  const [list, more, count] = ["list", "more", "count"].map((id) => document.getElementById(id));
  const controls = Object.fromEntries(["state", "cause", "slice", "search"].map((id) => [id, document.getElementById(id)]));
  const compared = data.questions.some((each) => each.before);
  const MARKS = { right: "✓ right", wrong: "✗ wrong", failed: "✗ failed", unreadable: "✗ unreadable", "not asked": "– not asked" };
  const STATES = {
    all: ["all", () => true],
    wrong: ["wrong", (each) => each.now.state !== "right"],
    right: ["right", (each) => each.now.state === "right"],
    refused: ["refused", (each) => Boolean(each.now.refused)],
    failed: ["failed or not asked", (each) => ["failed", "unreadable", "not asked"].includes(each.now.state)],
    changed: ["changed between the runs", (each) => Boolean(each.move)],
    gained: ["gained", (each) => each.move === "gained"],
    lost: ["lost", (each) => each.move === "lost"],
  };
  let found = [], drawn = 0;

  function make(name, text, className) {
    const element = document.createElement(name);
    if (text !== undefined && text !== null) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  function said(name, text, className = "text") {
    const element = make(name, text, className);
    element.dir = "auto";
    return element;
  }

  function option(value, text) {
    const element = make("option", text);
    element.value = value;
    return element;
  }

  function tally(lists) {
    const counts = new Map();
    for (const names of lists) for (const name of names || []) counts.set(name, (counts.get(name) || 0) + 1);
    return [...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
  }

  function fill() {
    for (const [name, [text, holds]] of Object.entries(STATES)) {
      if (!compared && ["changed", "gained", "lost"].includes(name)) continue;
      controls.state.append(option(name, `${text} (${data.questions.filter(holds).length})`));
    }
    const causes = tally(data.questions.map((each) => each.causes));
    controls.cause.append(option("", "any"));
    for (const [name, n] of causes) controls.cause.append(option(name, `${data.causes[name] || name} (${n})`));
    controls.cause.disabled = causes.length === 0;
    controls.slice.append(option("", "any"));
    for (const [name, n] of tally(data.questions.map((each) => each.slices))) controls.slice.append(option(name, `${name} (${n})`));
  }

  // What is searched: made when it is first needed.
  function hay(each) {
    if (each.hay === undefined) {
      const sides = [each.now, each.before].filter(Boolean);
      const documents = sides.flatMap((side) => (side.passages || []).map((shown) => data.passages[shown.at]));
      const parts = [
        each.id, each.question, ...(each.slices || []), ...((each.expected || {}).answers || []), each.note,
        ...((each.expected || {}).contains || []), ...((each.expected || {}).gold || []).map((gold) => gold.document),
        ...sides.flatMap((side) => [side.text, side.reason, side.error, side.route, ...(side.flags || [])]),
        ...documents.flatMap((passage) => [passage.document, passage.title]),
      ];
      each.hay = parts.filter(Boolean).join("\n").normalize("NFKC").toLowerCase();
    }
    return each.hay;
  }

  function filter() {
    const [, holds] = STATES[controls.state.value] || STATES.all;
    const { cause, slice, search } = controls;
    // All words must be there; those in quotation marks one after the other.
    const words = (search.value.normalize("NFKC").toLowerCase().match(/"[^"]+"|\S+/g) || []).map((word) => word.replaceAll('"', ""));
    found = data.questions.filter((each) =>
      holds(each)
      && (!cause.value || (each.causes || []).includes(cause.value))
      && (!slice.value || each.slices.includes(slice.value))
      && words.every((word) => hay(each).includes(word)));
    list.replaceChildren();
    drawn = 0;
    draw();
    const right = found.filter((each) => each.now.state === "right").length;
    count.textContent = `${found.length.toLocaleString("en")} of ${data.questions.length.toLocaleString("en")} questions, ${right.toLocaleString("en")} of them right`;
  }

  function draw() {
    const rows = document.createDocumentFragment();
    for (const each of found.slice(drawn, drawn + BATCH)) rows.append(row(each));
    list.append(rows);
    drawn = Math.min(drawn + BATCH, found.length);
    more.hidden = drawn >= found.length;
    more.textContent = `Show more (${(found.length - drawn).toLocaleString("en")} left)`;
  }

  function row(each) {
    const details = document.createElement("details");
    details.dataset.id = each.id;
    const summary = document.createElement("summary");
    const chips = make("span", null, "chips");
    if (each.move) chips.append(make("span", each.move, `chip ${each.move}`));
    if (each.now.refused) chips.append(make("span", "refused", "chip"));
    for (const cause of each.causes || []) chips.append(make("span", data.causes[cause] || cause, "chip"));
    summary.append(make("span", MARKS[each.now.state], `state ${each.now.state}`), said("span", each.question, "text q"), chips);
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && !details.querySelector(".detail")) details.append(detail(each));
    });
    return details;
  }

  function detail(each) {
    const whole = make("div", null, "detail");
    const facts = [each.id, ...(each.slices || []), each.as_of && `as of ${each.as_of}`].filter(Boolean);
    whole.append(make("p", facts.join(" · "), "quiet"));
    if (each.expected) expected(whole, each.expected);
    if ((each.causes || []).length || each.note) causes(whole, each);
    const sides = make("div", null, "sides");
    sides.append(side(each.now, compared ? `This run: ${data.names[0]}` : ""));
    if (each.before) sides.append(side(each.before, `Before: ${data.names[1]}`));
    whole.append(sides);
    return whole;
  }

  function heading(parent, text) { parent.append(make("h4", text)); }

  function lines(parent, texts, name = "li") {
    const items = make("ul", null, "plain");
    for (const text of texts) items.append(said(name, text));
    parent.append(items);
  }

  function expected(parent, wanted) {
    heading(parent, "Expected");
    const texts = wanted.answerable ? [...wanted.answers] : ["a refusal: the documents do not answer it"];
    if (wanted.contains.length) texts.push(`holds: ${wanted.contains.join(" | ")}`);
    if (wanted.pattern) texts.push(`matches: ${wanted.pattern}`);
    if (wanted.route) texts.push(`route: ${wanted.route}`);
    for (const gold of wanted.gold) {
      const where = [gold.document || "any document", gold.version !== null && `version ${gold.version}`].filter(Boolean).join(", ");
      texts.push(`gold: ${where}${gold.quote ? `: “${gold.quote}”` : ""}`);
    }
    lines(parent, texts.length ? texts : ["nothing: the set does not say"]);
  }

  function causes(parent, each) {
    heading(parent, "Cause");
    const texts = (each.causes || []).map((cause) => `${data.causes[cause] || cause} (${cause})`);
    if (each.note) texts.push(each.note);
    lines(parent, texts);
    const commands = each.commands || (each.causes || []).map((cause) => data.commands[cause]).filter(Boolean);
    for (const command of commands) parent.append(make("pre", command, "command"));
  }

  function side(run, title) {
    const part = make("div", null, "side");
    if (title) part.append(make("h3", title));
    heading(part, "Answer");
    const mark = make("p", MARKS[run.state], `state ${run.state}`);
    if (run.reason) mark.append(said("span", `: ${run.reason}`));
    part.append(mark);
    if (run.text) part.append(said("p", run.text, "text answer"));
    if (run.error) part.append(said("p", run.error, "text error"));
    const about = [run.refused && "refused", run.route && `route ${run.route}`, run.adapter && `adapter ${run.adapter}`];
    if (about.some(Boolean)) part.append(make("p", about.filter(Boolean).join(" · "), "quiet"));
    if ((run.cited || []).length) {
      heading(part, "Citations");
      lines(part, run.cited.map((cited) => {
        const gold = cited.gold === null ? "" : cited.gold ? " (right source)" : " (not the expected source)";
        return `${cited.document}, version ${cited.version}${gold}: “${cited.quote}”`;
      }));
    }
    if (run.passages) {
      heading(part, `Passages shown (${run.passages.length})`);
      run.passages.forEach((shown, at) => part.append(passage(shown, at + 1)));
    }
    numbers(part, run);
    return part;
  }

  function passage(shown, number) {
    const { document: name, version, title, text } = data.passages[shown.at];
    const box = make("article", null, shown.holds ? "passage holds" : "passage");
    const head = make("header");
    const scores = Object.entries(shown.scores).map(([key, value]) => `${key} ${value}`);
    head.append(said("b", `[${number}] ${name}`), make("span", `version ${version}`), said("span", title), make("span", `score ${shown.score}`));
    if (scores.length) head.append(make("span", scores.join(" · ")));
    if (shown.holds) head.append(make("span", "✓ holds the answer", "state right"));
    box.append(head, said("p", text === null ? "(its text is no longer stored)" : text));
    return box;
  }

  function numbers(parent, run) {
    const facts = [];
    if (run.sufficiency !== undefined && run.sufficiency !== null) facts.push(`sufficiency ${run.sufficiency.toFixed(2)}`);
    if ((run.flags || []).length) facts.push(`flags: ${run.flags.join(", ")}`);
    if (run.tokens && run.tokens[0] + run.tokens[1]) facts.push(`${run.tokens[0]} prompt and ${run.tokens[1]} completion tokens`);
    if (run.cost !== undefined && run.cost !== null) facts.push(`cost ${run.cost}`);
    const times = Object.entries(run.timings || {}).map(([name, value]) => `${name} ${value}`);
    if (times.length) facts.push(`milliseconds: ${times.join(", ")}`);
    if (!facts.length) return;
    heading(parent, "Numbers");
    lines(parent, facts);
  }

  function pick(kind, value) {
    document.getElementById("filters").reset();
    controls[kind].value = value;
    filter();
    document.getElementById("questions").scrollIntoView();
    controls[kind].focus({ preventScroll: true });
  }

  function walk(event) {
    const rows = [...list.querySelectorAll("summary")];
    const at = rows.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (at < 0 || to === undefined || !rows[to]) return;
    event.preventDefault();
    rows[to].focus();
  }

  let waiting;
  fill();
  filter();
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filters").addEventListener("reset", () => setTimeout(filter));
  for (const name of ["state", "cause", "slice"]) controls[name].addEventListener("change", filter);
  controls.search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  more.addEventListener("click", () => { const first = drawn; draw(); list.children[first].firstChild.focus(); });
  list.addEventListener("keydown", walk);
  for (const button of document.querySelectorAll("button.pick")) {
    button.addEventListener("click", () => pick(button.dataset.kind, button.dataset.value));
  }
})();
