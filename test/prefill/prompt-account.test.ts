import assert from "node:assert/strict";
import { EngineHttp } from "../../services/engine/http.ts";
import type { LiveEngine } from "../../services/engine/engine.ts";
import { PromptAccount } from "../../services/prefill/prompt-account.ts";
import { manualClock } from "../support/manual-clock.ts";

/** An engine whose counters the test sets. Each reading takes the next one; the last one stays. */
class Counters extends EngineHttp {
  next: { tokens: number; running?: number }[] = [{ tokens: 0 }];

  constructor() {
    super({ url: "http://127.0.0.1:9" });
  }

  override async get(): Promise<{ status: number; body: Buffer }> {
    const { tokens, running = 0 } = this.next.length > 1 ? this.next.shift()! : this.next[0]!;
    const text = `vllm:prompt_tokens_total ${tokens}\nvllm:num_requests_running ${running}\n`;
    return { status: 200, body: Buffer.from(text) };
  }
}

/** @param startTokens Counted before the first leg. */
async function lab(startTokens = 0) {
  const clock = manualClock();
  const http = new Counters();
  const engine: LiveEngine = {
    http,
    kvAddress: "",
    facts: { kind: "vllm", version: "", model: "", maxModelLen: 0, blockSize: 0 },
  };
  const account = new PromptAccount(clock);
  http.next = [{ tokens: startTokens }];
  account.engineChanged(engine);
  await clock.pass(0);
  const proven = async (): Promise<boolean> => {
    let result: boolean | undefined;
    void account.computedNothing(engine).then((value) => (result = value));
    for (let count = 0; result === undefined; count++) {
      assert.ok(count < 50);
      await clock.pass(100);
    }
    return result;
  };
  return { http, account, engine, proven };
}

describe("a prefill engine that failed a leg", () => {
  it("has computed nothing for it when it counted nothing", async () => {
    const { account, proven } = await lab(500);
    account.began();
    account.ended(0);
    assert.equal(await proven(), true);
  });

  it("has computed nothing for it when all that it counted was answered", async () => {
    const { http, account, proven } = await lab(500);
    for (const tokens of [30, 0, 12]) {
      account.began();
      account.ended(tokens);
    }
    http.next = [{ tokens: 542 }];
    assert.equal(await proven(), true);
  });

  it("may have computed it when it counted more than it answered", async () => {
    const { http, account, proven } = await lab();
    account.began();
    account.ended(0);
    http.next = [{ tokens: 30 }];
    assert.equal(await proven(), false);
  });

  it("may be computing it when it runs more than was given to it otherwise", async () => {
    const { http, account, proven } = await lab();
    account.began();
    account.ended(0);
    http.next = [{ tokens: 0, running: 1 }];
    assert.equal(await proven(), false);
  });

  it("is read again while prompts of others are counted and not answered yet", async () => {
    const { http, account, proven } = await lab();
    account.began();
    account.began();
    account.ended(0);
    http.next = [{ tokens: 30, running: 1 }, { tokens: 30 }];
    const answer = proven();
    account.ended(30);
    assert.equal(await answer, true);
  });

  it("proves nothing if it counts in another way, until it is found quiet", async () => {
    const { http, account, proven } = await lab();
    account.began();
    account.ended(30);
    http.next = [{ tokens: 7 }];
    assert.equal(await proven(), false);
    account.began();
    account.ended(0);
    assert.equal(await proven(), true, "compared from then on");
  });

  it("proves nothing after it was replaced, or while it can't be read", async () => {
    const { http, account, engine, proven } = await lab();
    http.get = async () => Promise.reject(new Error("gone"));
    assert.equal(await proven(), false);
    account.engineChanged(undefined);
    assert.equal(await account.computedNothing(engine), false);
  });
});
