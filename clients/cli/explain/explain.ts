// `tandem explain ID`: the receipt of one request, as a readable story.
import { toJsonString } from "@bufbuild/protobuf";
import { ReceiptSchema } from "#gen/tandem/router/v1/router_pb.js";
import { boolean, ConfigError, defineConfig, loadConfig, StartError, text } from "../../../services/common/config.ts";
import { TandemError } from "../../client/errors.ts";
import { withRouter } from "../router-calls.ts";
import { explained, findRouter, routerSettings } from "../router-target.ts";
import { storyOf } from "./story.ts";

export const explainConfig = defineConfig(
  "explain",
  {
    request: text("request", "x-request-id of the answer, or the id that the client sent. Same as ID.", {
      optional: true,
    }),
    ...routerSettings,
    json: boolean("json", "Print the receipt as JSON, as RouterService.GetReceipt returns it.", { default: false }),
  },
  {
    summary: "Explains what became of one request: where it ran, what was retried, where the time went.",
    usage: "tandem explain ID [--json] [--router URL]",
  },
);

export async function runExplain(argv: readonly string[]): Promise<void> {
  process.stdout.write(`${await explain(argv, process.env)}\n`);
}

/** The text to print, without the last newline. @throws StartError, ConfigError */
export async function explain(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  // The id is the first argument, as people type it; all other arguments are settings.
  const [first, ...rest] = argv;
  const named = first !== undefined && !first.startsWith("-");
  const config = loadConfig(explainConfig, { argv: named ? rest : argv, env });
  const requestId = named ? first : config.request;
  if (requestId === undefined)
    throw new ConfigError("Which request? Run tandem explain ID, with the x-request-id of the answer.");
  const target = findRouter(config);
  try {
    const { receipt } = await withRouter(target, (router) => router.getReceipt({ requestId }));
    if (receipt === undefined) throw new StartError(`The router at ${target.url} returned no receipt.`);
    return config.json
      ? toJsonString(ReceiptSchema, receipt, { alwaysEmitImplicit: true, prettySpaces: 2 })
      : storyOf(receipt);
  } catch (error) {
    if (error instanceof TandemError && error.code === "not_found")
      throw new StartError(
        `${target.url}: ${error.message} Each router keeps its own receipts: ask another with --router URL.`,
      );
    throw explained(error, target);
  }
}
