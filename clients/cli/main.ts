#!/usr/bin/env node
// The one program of Tandem: `tandem up`, `tandem router`, ...
import { realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { runMain } from "../../services/common/run-main.ts";
import { runCommand } from "./commands.ts";

let started = false;

/** Runs the program once: `npm start` imports this file and calls it; a shell starts the file itself. */
export function runCli(argv: readonly string[]): void {
  if (started) return;
  started = true;
  runMain(() => runCommand(argv));
}

/** Symbolic links are resolved, because npm puts one into node_modules/.bin. */
function isScript(): boolean {
  try {
    return realpathSync(process.argv[1] ?? "") === fileURLToPath(import.meta.url);
  } catch {
    return false;
  }
}

if (isScript()) runCli(process.argv.slice(2));
