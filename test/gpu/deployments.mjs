// What the steps of the GPU run start: a vLLM alone, or Tandem with its engines.
import { freePort, instances, start, tandem, until } from "./servers.mjs";
import { CONNECTOR, FLAGS, OUT, rehearsal, TINY, TOKEN, VLLM } from "./settings.mjs";

/** A vLLM alone, by hand: what answers are compared with, and the controls that must fail. */
export async function bare(name, flags, env = {}) {
  const port = await freePort();
  const words = VLLM.split(" ");
  const server = start(
    words[0],
    [
      ...words.slice(1),
      "serve",
      TINY,
      "--served-model-name",
      "m",
      "--host",
      "127.0.0.1",
      "--port",
      String(port),
      ...FLAGS,
      ...flags,
    ],
    `${OUT}/${name}.log`,
    env,
  );
  const url = `http://127.0.0.1:${port}`;
  await until(name, async () => (await fetch(`${url}/health`)).status === 200, 600_000, server);
  return { ...server, url, port };
}

/** `tandem up`, ready: every instance takes legs. */
export async function up(name, model, flags, engineFlags, limitMs = 900_000) {
  const [port, grpc] = [await freePort(), await freePort()];
  const server = tandem(
    [
      "up",
      "--port",
      String(port),
      "--grpc-port",
      String(grpc),
      "--state.dir",
      `${OUT}/${name}`,
      "--verbose",
      ...flags,
      "--vllm.command",
      VLLM,
      "--model",
      model,
      "--served_name",
      "m",
      "--",
      ...engineFlags,
    ],
    `${OUT}/${name}.log`,
    { TANDEM_TOKEN: TOKEN, TANDEM_LOG_LEVEL: "debug" },
  );
  const url = `http://127.0.0.1:${port}`;
  const serving = async () =>
    (await instances(url, TOKEN)).every(({ eligible }) => eligible === true) &&
    (await instances(url, TOKEN)).length >= 2;
  await until(`${name} serves`, serving, limitMs, server);
  return { ...server, url, serving };
}

export const UP = ["--engine", "vllm", "--connector", CONNECTOR];
export const PAIR = rehearsal ? [] : ["--gpus", "0,1"];
