// Detects `npm start --port 9` without `--` before the flags: npm silently takes such flags as its own.

/** Flags of `tandem up` that people type and npm doesn't know. */
const FLAGS = [
  "port",
  "grpc-port",
  "prefill",
  "decode",
  "engine",
  "model",
  "attach",
  "connector",
  "api-key",
  "slots",
  "config",
];

/**
 * The hint for the user if npm took flags that were meant for Tandem; undefined if not. npm passes such flags on
 * as npm_config_*: `--port=9` as "9", and `--port 9` as "true" with the "9" left among the arguments.
 */
export function swallowedFlags(env, args) {
  const loose = args.filter((arg) => !arg.startsWith("-"));
  const taken = FLAGS.filter((flag) => env[`npm_config_${flag.replaceAll("-", "_")}`] !== undefined);
  // npm completes --engine to its own --engine-strict.
  if (env.npm_config_engine_strict === "true" && loose.length > 0 && args[0] === loose[0]) taken.push("engine");
  if (taken.length === 0) return undefined;
  const written = taken.map((flag) => {
    const value = env[`npm_config_${flag.replaceAll("-", "_")}`];
    if (value !== undefined && value !== "true") return `--${flag} ${value}`;
    // A loose word only certainly belongs to a flag if there is one of each.
    return taken.length === 1 && loose.length === 1 ? `--${flag} ${loose[0]}` : `--${flag} ...`;
  });
  const names = taken.map((flag) => `--${flag}`).join(", ");
  const right = `npm start -- ${written.join(" ")}`;
  return `npm took ${names} for itself. Put the flags for Tandem after two dashes:\n\n  ${right}\n`;
}
