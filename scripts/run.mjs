#!/usr/bin/env node
// The entry of `npm start`, `npm test` and the other npm scripts, also on a fresh clone. Uses only Node's own modules,
// and no syntax that an old Node can't parse.
const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(
    "Tandem needs Node 20.19 or later (24 is best); this is Node " +
      process.versions.node +
      ".\n" +
      "Get it from https://nodejs.org, or with a version manager: nvm install 24, fnm install 24.",
  );
  process.exit(1);
}
import("./commands.mjs")
  .then(function (commands) {
    return commands.runCommand(process.argv[2], process.argv.slice(3));
  })
  .catch(function (error) {
    // A failed step has a message for the user; any other error is a bug in these scripts.
    console.error(error.expected ? error.message : error);
    process.exit(error.exitCode || 1);
  });
