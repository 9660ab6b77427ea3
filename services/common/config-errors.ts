// The two ways in which reading a configuration ends a process, both without a stack trace.

/** The user wrote something that can't be used. `message` says what, where and what was expected. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/** `--help` was given; `text` is what to print. */
export class HelpRequested extends Error {
  override readonly name = "HelpRequested";
  readonly text: string;

  constructor(text: string) {
    super("help was requested");
    this.text = text;
  }
}
