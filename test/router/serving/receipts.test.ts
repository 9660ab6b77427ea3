import assert from "node:assert/strict";
import { createReceipts } from "../../../services/router/serving/receipts.ts";
import { createReceiptDraft, type ReceiptDraft } from "../../../services/router/request/receipt.ts";

const draft = (requestId: string, clientId?: string): ReceiptDraft =>
  createReceiptDraft({
    requestId,
    clientId,
    startedUnixMs: 0,
    path: "/v1/completions",
    model: "m",
    stream: false,
    tenant: "",
    priority: 0,
  });

describe("receipts", () => {
  it("show running requests first and forget the oldest that ended", () => {
    const receipts = createReceipts({ limit: 2, watcherLimit: 1 });
    for (const id of ["a", "b", "c", "d"]) receipts.opened(draft(id));
    for (const id of ["a", "b", "c"]) receipts.closed(receipts.find(id)!);
    assert.deepEqual(
      receipts.list(10).map(({ requestId }) => requestId),
      ["d", "c", "b"],
    );
    assert.equal(receipts.find("a"), undefined);
  });

  it("are found by the client's own id, the latest of that name, for as long as they are kept", () => {
    const receipts = createReceipts({ limit: 1, watcherLimit: 1 });
    for (const id of ["a", "b"]) {
      receipts.opened(draft(id, "mine"));
      receipts.closed(receipts.find(id)!);
    }
    assert.equal(receipts.find("mine")?.requestId, "b");
    receipts.opened(draft("c"));
    receipts.closed(receipts.find("c")!);
    assert.equal(receipts.find("mine"), undefined);
  });

  it("tell a slow watcher how many it missed, with the first one after the gap", async () => {
    const receipts = createReceipts({ limit: 1000, watcherLimit: 1 });
    const stop = new AbortController();
    const watch = receipts.watch(stop.signal)[Symbol.asyncIterator]();
    const first = watch.next();
    const close = (id: string): void => receipts.closed(draft(id));
    close("0");
    assert.equal((await first).value!.draft.requestId, "0");
    for (let count = 1; count <= 300; count += 1) close(String(count));
    const seen: [string, number][] = [];
    for (let count = 0; count < 256; count += 1) {
      const { value } = await watch.next();
      seen.push([value!.draft.requestId, value!.missed]);
      if (count === 0) close("late");
    }
    assert.deepEqual(seen.at(-1), ["256", 0]);
    assert.deepEqual(await watch.next().then(({ value }) => [value!.draft.requestId, value!.missed]), ["late", 44]);
    stop.abort();
    assert.equal((await watch.next()).done, true);
  });
});
