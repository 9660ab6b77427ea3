import { startFast, startPair } from "./client.ts";
import { describeRepeatable } from "./repeatable.ts";

describeRepeatable("the sim", {
  start: () => startFast(),
  startPair: () => startPair(),
  prompt: "Скажи мне что-нибудь 🌊🌊🌊 about the sea",
  manyTokens: 5_000,
});
