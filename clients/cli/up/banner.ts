// What `tandem up` prints once everything is ready: addresses, and commands to paste.

/** Outside a clone, `npx tandem` could fetch an unrelated package of that name. */
const TANDEM = import.meta.url.includes("/node_modules/") ? "npx @tandem-llm/tandem" : "npx tandem";

export interface BannerInput {
  readonly restUrl: string;
  readonly grpcAddress: string;
  readonly model: string;
  /** How to write the join token in a shell: the token itself, or the variable it came from. */
  readonly tokenText: string;
  /** How to write the API key in a shell. Undefined if no key is needed. */
  readonly apiKeyText: string | undefined;
  /** Flags by which commands find this deployment, each with a leading space; empty if no flag is needed. */
  readonly target: string;
  /** The file that holds the join token, if `tokenText` is a variable that is not set yet. */
  readonly tokenFile: string | undefined;
  readonly logDir: string;
  /** Address of Consul's web UI, if everything is registered in Consul. */
  readonly consulUi?: string | undefined;
  readonly readyS: number;
}

export function banner(input: BannerInput): string {
  const body = JSON.stringify({
    model: input.model,
    stream: true,
    messages: [{ role: "user", content: "What is Tandem?" }],
  });
  const key = input.apiKeyText === undefined ? "" : ` -H "authorization: Bearer ${input.apiKeyText}"`;
  return `
Ready after ${input.readyS.toFixed(2)} s.

  OpenAI API  ${input.restUrl}/v1
  gRPC        ${input.grpcAddress}
  Page        ${input.restUrl}/
  Logs        ${input.logDir}${input.consulUi === undefined ? "" : `\n  Consul      ${input.consulUi}`}

Ask something:
  curl -N ${input.restUrl}/v1/chat/completions${key} -H 'content-type: application/json' -d ${quoted(body)}
  ${TANDEM} chat${input.target}

Look inside:
  grpcurl -plaintext -H "authorization: Bearer ${input.tokenText}" ${input.grpcAddress} tandem.router.v1.RouterService/ListInstances
  ${TANDEM} status${input.target}
${input.tokenFile === undefined ? "" : `  The join token is in ${input.tokenFile}, which only you can read.\n`}
Ctrl-C stops everything.
`;
}

/** Quotes `text` for a POSIX shell. */
export function quoted(text: string): string {
  return /^[\w/.:@-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
