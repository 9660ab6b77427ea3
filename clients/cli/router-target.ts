// Which router a command is about, and what to say when that router doesn't answer as it should.
import { ConfigError, secret, StartError, text } from "../../services/common/config.ts";
import { TandemError } from "../client/errors.ts";
import { defaultStateDir, liveRuns } from "./run-file.ts";

const DEFAULT_URL = "http://127.0.0.1:3000";

/** The settings of every command that asks a router. */
export const routerSettings = {
  "router.url": text({
    optional: true,
    alias: "router",
    doc: "REST address of the router, such as http://127.0.0.1:3000. Left out: the `tandem up` of this user.",
  }),
  token: secret({ doc: "Join token of that router. Left out: that of the `tandem up` that runs there." }),
  "state.dir": text({ optional: true, doc: "Folder of run files. Left out: ~/.local/state/tandem." }),
};

export interface RouterTarget {
  readonly url: string;
  /** Empty: none is known. */
  readonly token: string;
  /** Of the `tandem up` behind it, where it is one of this user. */
  readonly pid: number | undefined;
  /** `tandem up`s of this user. */
  readonly runCount: number;
}

/** The router named, else that of the `tandem up` that runs here, else the default address. @throws ConfigError */
export function findRouter(config: {
  readonly "router.url": string | undefined;
  readonly token: string;
  readonly "state.dir": string | undefined;
}): RouterTarget {
  const runs = liveRuns(config["state.dir"] ?? defaultStateDir());
  const wanted = config["router.url"] === undefined ? undefined : urlOf(config["router.url"]);
  const run = runs.find((candidate) => wanted === undefined || candidate.restUrl === wanted);
  return {
    url: wanted ?? run?.restUrl ?? DEFAULT_URL,
    token: config.token !== "" ? config.token : (run?.token ?? ""),
    pid: run?.pid,
    runCount: runs.length,
  };
}

function urlOf(written: string): string {
  const url = /^https?:\/\//.test(written) ? written : `http://${written}`;
  if (!URL.canParse(url)) throw new ConfigError(`--router ${written}: expected a URL such as ${DEFAULT_URL}.`);
  return url.replace(/\/+$/, "");
}

/** What `error` of a call to `target` means for the user. Any other error is returned as it is. */
export function explained(error: unknown, target: RouterTarget, apiKey = ""): unknown {
  return error instanceof TandemError ? new StartError(wordsOf(error, target, apiKey), { cause: error }) : error;
}

function wordsOf(error: TandemError, { url, token, runCount }: RouterTarget, apiKey: string): string {
  switch (error.kind) {
    case "unauthenticated": {
      // RouterService names its own codes; REST has a status.
      const [secret_, given, cure] =
        error.code === undefined
          ? ["API key", apiKey, "give --api-key, or set OPENAI_API_KEY"]
          : ["join token", token, "give --token, or set TANDEM_TOKEN to the one that it was started with"];
      return given === ""
        ? `The router at ${url} wants its ${secret_}: ${cure}.`
        : `The router at ${url} refuses this ${secret_}: it is not the right one. To change it, ${cure}.`;
    }
    case "unreachable":
      return runCount === 0
        ? `${error.message} No \`tandem up\` of this user runs here. Start one with \`tandem up\`, or name a router with --router URL.`
        : `${error.message} Name the router with --router URL.`;
    case "not_tandem":
      return `${error.message} Give the REST address of a router with --router.`;
    case "broken":
      return error.message;
    case "failed":
      return `The router at ${url} answered: ${error.message}`;
  }
}
