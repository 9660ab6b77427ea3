import { startFast } from "./client.ts";
import { describeRepeatable } from "./repeatable.ts";

describeRepeatable("the sim", {
  start: () => startFast(),
  async startPair() {
    const prefill = await startFast({ role: "prefill", connector: "p2p-zmq" });
    const decode = await startFast({ role: "decode", connector: "p2p-zmq" });
    return {
      prefill,
      decode,
      async [Symbol.asyncDispose]() {
        await prefill[Symbol.asyncDispose]();
        await decode[Symbol.asyncDispose]();
      },
    };
  },
  prompt: "Скажи мне что-нибудь 🌊🌊🌊 about the sea",
  manyTokens: 5_000,
});
