#!/usr/bin/env node
// The one program of Tandem: `tandem up`, `tandem router`, ...
import { runMain } from "../../services/common/run-main.ts";
import { runCommand } from "./commands.ts";

runMain(() => runCommand(process.argv.slice(2)));
