// What `tandem up` prints once everything is ready: addresses, and commands to paste.
import type { Run } from "../run-file.ts";
import { DEFAULT_NAME, type UpConfig } from "./config.ts";

/** Outside a clone, `npx tandem` could fetch an unrelated package of that name. */
const TANDEM = import.meta.url.includes("/node_modules/") ? "npx @tandem-llm/tandem" : "npx tandem";

export interface BannerInput {
  readonly config: UpConfig;
  readonly run: Omit<Run, "processes">;
  /** The file of the run, which holds the join token. */
  readonly runFile: string;
  readonly stateDir: string;
  readonly model: string;
  /** Address of Consul's web UI, if everything is registered in Consul. */
  readonly consulUi: string | undefined;
}

export function banner({ config, run, runFile, stateDir, model, consulUi }: BannerInput): string {
  const { restUrl, grpcAddress } = run;
  const ca = run.tls === undefined || !restUrl.startsWith("https:") ? undefined : quoted(run.tls.ca);
  const messages = [{ role: "user", content: "What is Tandem?" }];
  const body = JSON.stringify({ model, stream: true, messages });
  const { apiKey } = config.access;
  const key =
    apiKey === "" ? "" : ` -H "authorization: Bearer ${shown(config, "api_key", apiKey) ?? "$TANDEM_API_KEY"}"`;
  const token = shown(config, "token", run.token);
  // Flags by which commands find this deployment.
  const elsewhere = originOf(config, "state.dir").startsWith("flag ") ? ` --state.dir ${quoted(stateDir)}` : "";
  const target = `${elsewhere}${run.name === DEFAULT_NAME ? "" : ` --name ${run.name}`}`;
  return `
Ready after ${(performance.now() / 1000).toFixed(2)} s.

  OpenAI API  ${restUrl}/v1
  gRPC        ${grpcAddress}
  Page        ${restUrl}/
  Logs        ${run.logDir}${consulUi === undefined ? "" : `\n  Consul      ${consulUi}`}

Ask something:
  curl -N${ca === undefined ? "" : ` --cacert ${ca}`} ${restUrl}/v1/chat/completions${key} -H 'content-type: application/json' -d ${quoted(body)}
  ${ca === undefined ? "" : `NODE_EXTRA_CA_CERTS=${ca} `}${TANDEM} chat${target}

Look inside:
  grpcurl ${run.tls === undefined ? "-plaintext" : `-cacert ${quoted(run.tls.ca)}`} -H "authorization: Bearer ${token ?? "$TANDEM_TOKEN"}" ${grpcAddress} tandem.router.v1.RouterService/ListInstances
  ${TANDEM} status${target}
${token === undefined ? `  The join token is in ${runFile}, which only you can read.\n` : ""}
Ctrl-C stops everything.`;
}

/**
 * How to write a secret in a shell. A secret that came from a variable is shown as that variable. Any other is only
 * shown on a terminal, because elsewhere it would stay in a log. Undefined if it must not be shown.
 */
function shown(config: UpConfig, key: "token" | "api_key", value: string): string | undefined {
  const origin = originOf(config, key);
  if (origin.startsWith("env ")) return `$${origin.slice("env ".length)}`;
  return process.stdout.isTTY ? value : undefined;
}

function originOf(config: UpConfig, key: string): string {
  return config.settings.all.find((setting) => setting.key === key)?.origin ?? "";
}

/** Quotes `text` for a POSIX shell. */
function quoted(text: string): string {
  return /^[\w/.:@-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
