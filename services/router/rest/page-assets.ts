// The style of the page at `/`, in light and dark, and its script, which replaces what changes every two seconds.

export const PAGE_STYLE = `
:root { color-scheme: light dark; --text: #1c2024; --soft: #60666d; --line: #e2e5e9; --ground: #fff; --block: #f6f7f9;
  --prefill: #0b68cb; --decode: #7b3fc4; --good: #18794e; --warn: #ad5700; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --soft: #9aa1a9; --line: #2c3136; --ground: #131518;
  --block: #1b1e22; --prefill: #6cb2ff; --decode: #c39bff; --good: #5fd29a; --warn: #f0a95b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 3rem 1.5rem 2rem; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; font-weight: 650; letter-spacing: -.02em; }
header p { margin: .2rem 0 0; color: var(--soft); }
h2 { margin: 2.4rem 0 .7rem; font-size: 1.05rem; font-weight: 600; }
h3 { margin: 1.1rem 0 .35rem; font-size: .85rem; font-weight: 500; color: var(--soft); }
code, pre { font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: 0; padding: .75rem .9rem; overflow-x: auto; background: var(--block); border: 1px solid var(--line); border-radius: 8px; }
#status { margin: 1.6rem 0 1.2rem; font-weight: 550; }
#status::before { content: "\\25CF"; margin-right: .5rem; }
.ready { color: var(--good); }
.waiting { color: var(--warn); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; white-space: nowrap; }
th { padding: .4rem .9rem .4rem 0; font-weight: 500; text-align: left; color: var(--soft); border-bottom: 1px solid var(--line); }
td { padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.state { white-space: normal; min-width: 9rem; max-width: 24rem; }
.n { text-align: right; }
.none { color: var(--soft); }
.role { font-weight: 600; }
.prefill { color: var(--prefill); }
.decode { color: var(--decode); }
footer { display: flex; justify-content: space-between; margin-top: 2.6rem; padding-top: 1rem; border-top: 1px solid var(--line);
  font-size: .85rem; color: var(--soft); }
footer a { color: inherit; margin-right: 1rem; }
`;

export const PAGE_SCRIPT = `
"use strict";
async function refresh() {
  if (document.hidden) return;
  const text = await (await fetch("/")).text();
  const next = new DOMParser().parseFromString(text, "text/html");
  for (const id of ["status", "models", "instances"]) document.getElementById(id).replaceWith(next.getElementById(id));
}
setInterval(() => refresh().catch(() => {
  const status = document.getElementById("status");
  status.className = "waiting";
  status.textContent = "The router does not answer.";
}), 2000);
`;
