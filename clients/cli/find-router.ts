// Which router a command is about.
import { StartError } from "../../services/common/config.ts";
import { defaultStateDir, liveRuns } from "./run-file.ts";

const DEFAULT_URL = "http://127.0.0.1:3000";

export interface FoundRouter {
  readonly url: string;
  /** Empty: none is known. */
  readonly token: string;
  /** Of the `tandem up` behind it, where it is one of this user. */
  readonly pid: number | undefined;
  readonly runCount: number;
}

/** The router named, else that of the `tandem up` started last, else the default address. @throws StartError for what is no URL. */
export function findRouter(config: {
  readonly "router.url": string | undefined;
  readonly token: string;
  readonly "state.dir": string | undefined;
}): FoundRouter {
  const runs = liveRuns(config["state.dir"] ?? defaultStateDir());
  const wanted = config["router.url"] === undefined ? undefined : normalise(config["router.url"]);
  const run = runs.find((candidate) => wanted === undefined || candidate.restUrl === wanted);
  return {
    url: wanted ?? run?.restUrl ?? DEFAULT_URL,
    token: config.token !== "" ? config.token : (run?.token ?? ""),
    pid: run?.pid,
    runCount: runs.length,
  };
}

/** @throws StartError for what is no URL. */
function normalise(written: string): string {
  const url = /^https?:\/\//.test(written) ? written : `http://${written}`;
  if (!URL.canParse(url)) throw new StartError(`--router ${written}: expected a URL such as ${DEFAULT_URL}.`);
  return url.replace(/\/+$/, "");
}
