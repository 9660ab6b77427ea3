// What stands after `--` on a command line, as values of a list setting: `tandem decode --engine vllm -- --dtype float16`.

/** Every word after the first `--` becomes `--KEY=WORD`; without a `--`, `argv` as it is. */
export function restAsFlags(argv: readonly string[], key: string): readonly string[] {
  const at = argv.indexOf("--");
  return at === -1 ? argv : [...argv.slice(0, at), ...argv.slice(at + 1).map((word) => `--${key}=${word}`)];
}
