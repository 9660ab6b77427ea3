// `tandem explain ID`: the receipt of one request, told as a story.
import { toJsonString } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { ReceiptSchema } from "#gen/tandem/router/v1/router_pb.js";
import { ConfigError, loadConfig, StartError } from "../../../services/common/config.ts";
import { routerOverRest } from "../../control/client.ts";
import { findRouter } from "../find-router.ts";
import { explainRouterError } from "../router-error.ts";
import { explainConfig } from "./config.ts";
import { storyOf } from "./story.ts";

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
  const { url, token, runCount } = findRouter(config);
  try {
    const { receipt } = await routerOverRest(url, { token }).getReceipt({ requestId });
    if (receipt === undefined) throw new StartError(`The router at ${url} gave no receipt.`);
    return config.json
      ? toJsonString(ReceiptSchema, receipt, { alwaysEmitImplicit: true, prettySpaces: 2 })
      : storyOf(receipt);
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    // The router itself says so; without its service the answer would be of another kind.
    if (error.code === Code.NotFound && error.rawMessage.startsWith("No request"))
      throw new StartError(`${url}: ${error.rawMessage} Each router keeps its own: name another with --router URL.`);
    throw new StartError(explainRouterError(error, url, runCount));
  }
}
