// Keeps the instances of the page at `/` up to date. Asks RouterService; where that wants the join token, which a browser
// doesn't have, it asks for the page again and takes the table out of it.

export const PAGE_SCRIPT = `
"use strict";
const cell = (text, className) => Object.assign(document.createElement("td"), { textContent: text, className: className ?? "" });
const row = ({ info = {}, eligible, standing = "", reason, legs = 0, legsTotal = 0 }) => {
  const tr = document.createElement("tr");
  const role = info.role === "ROLE_PREFILL" ? "prefill" : "decode";
  const name = cell("");
  name.append(Object.assign(document.createElement("span"), { textContent: role, className: "role " + role }));
  const id = cell("");
  id.append(Object.assign(document.createElement("code"), { textContent: info.instanceId }));
  const state = cell(standing.replace("STANDING_", "").toLowerCase(), "state " + (eligible ? "ready" : "waiting"));
  if (reason) state.title = reason;
  tr.append(name, state, id, cell(info.model), cell([info.engine, info.engineVersion].join(" ")), cell(info.connector), cell(legs, "n"),
    cell(info.slotLimit ?? 0, "n"), cell(legsTotal, "n"));
  return tr;
};
let open = true;
let shown;
async function refresh() {
  if (document.hidden) return;
  if (open) {
    const answer = await fetch("/tandem.router.v1.RouterService/ListInstances", {
      method: "POST", headers: { "content-type": "application/json" }, body: "{}" });
    open = answer.ok;
    if (open) {
      const { instances = [] } = await answer.json();
      const seen = instances.map(({ info, standing }) => info.instanceId + info.model + standing).join();
      if (instances.length > 0) document.getElementById("instances").replaceChildren(...instances.map(row));
      if (seen === shown) return;
      shown = seen;
    }
  }
  const text = await (await fetch("/")).text();
  const next = new DOMParser().parseFromString(text, "text/html");
  for (const id of ["instances", "status", "models"]) document.getElementById(id).replaceWith(next.getElementById(id));
}
setInterval(() => refresh().catch(() => {
  shown = undefined;
  const status = document.getElementById("status");
  status.className = "waiting";
  status.textContent = "The router does not answer.";
}), 2000);
`;
