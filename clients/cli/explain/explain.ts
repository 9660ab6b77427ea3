// `tandem explain ID`: the receipt of one request, told as a story.
import { toJsonString } from "@bufbuild/protobuf";
import { ReceiptSchema } from "#gen/tandem/router/v1/router_pb.js";
import { boolean, ConfigError, defineConfig, loadConfig, StartError, text } from "../../../services/common/config.ts";
import { TandemError } from "../../client/errors.ts";
import { routerClient } from "../../client/router.ts";
import { explained, findRouter, routerSettings } from "../router-target.ts";
import { storyOf } from "./story.ts";

export const explainConfig = defineConfig(
  "explain",
  {
    request: text("request", "x-request-id of the answer, or the id that the client sent. The same as ID.", {
      optional: true,
    }),
    ...routerSettings,
    json: boolean("json", "Print JSON, the receipt as RouterService.GetReceipt gives it.", { default: false }),
  },
  {
    summary: "Tells what became of one request: where it ran, what was tried again, where the time went.",
    usage: "tandem explain ID [--json] [--router URL]",
  },
);

export async function runExplain(argv: readonly string[]): Promise<void> {
  process.stdout.write(`${await explain(argv, process.env)}\n`);
}

/** What is printed, without the last newline. @throws StartError, ConfigError */
export async function explain(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  // The id stands first, as people type it; everything after it is settings.
  const [first, ...rest] = argv;
  const named = first !== undefined && !first.startsWith("-");
  const config = loadConfig(explainConfig, { argv: named ? rest : argv, env });
  const requestId = named ? first : config.request;
  if (requestId === undefined)
    throw new ConfigError("Which request? tandem explain ID, with the x-request-id of its answer.");
  const target = findRouter(config);
  try {
    const { receipt } = await routerClient(target.url, target.token).getReceipt({ requestId });
    if (receipt === undefined) throw new StartError(`The router at ${target.url} gave no receipt.`);
    return config.json
      ? toJsonString(ReceiptSchema, receipt, { alwaysEmitImplicit: true, prettySpaces: 2 })
      : storyOf(receipt);
  } catch (error) {
    if (error instanceof TandemError && error.code === "not_found")
      throw new StartError(
        `${target.url}: ${error.message} Each router keeps its own: name another with --router URL.`,
      );
    throw explained(error, target);
  }
}
