import assert from "node:assert/strict";
import { FindingLevel } from "#gen/tandem/instance/v1/instance_pb.js";
import type { EngineFacts } from "../../services/engine/engine.ts";
import { vllmFindings, type DiagnosedVllm } from "../../services/engine/vllm-findings.ts";

const GIB = 2 ** 30;
const P2P: DiagnosedVllm = {
  role: "decode",
  connector: "p2p-nccl",
  launched: true,
  kvAddress: "127.0.0.1:21001",
  kvHost: "127.0.0.1",
  url: "unix:/tmp/tandem-engine-1/http.sock",
  hasApiKey: false,
  ranks: 1,
  poolGib: 4,
  freeMemoryBytes: 60 * GIB,
  totalMemoryBytes: 128 * GIB,
  env: {},
  facts: {
    kind: "vllm",
    version: "0.23.0",
    model: "m",
    maxModelLen: 8192,
    blockSize: 16,
    dtype: "bfloat16",
    tpSize: 1,
    modelRoot: "/m",
    enforceEager: false,
    cudagraphMode: "PIECEWISE",
    chunkedPrefill: false,
  },
};
const NIXL: DiagnosedVllm = { ...P2P, connector: "nixl", facts: { ...P2P.facts, version: "0.32.0" } };
const withFacts = (
  o: DiagnosedVllm,
  facts: Partial<EngineFacts>,
  more: Partial<DiagnosedVllm> = {},
): DiagnosedVllm => ({ ...o, ...more, facts: { ...o.facts, ...facts } });
const { enforceEager: _eager, cudagraphMode: _mode, ...UNREPORTED } = P2P.facts;
const levelOf = (o: DiagnosedVllm, check: string) => {
  const found = vllmFindings(o).find((one) => one.check === check);
  if (found !== undefined && found.level !== FindingLevel.OK)
    assert.ok(found.message !== "" && found.cure !== "", `${check} has a cure`);
  return found && FindingLevel[found.level].toLowerCase();
};

describe("the findings about a vLLM", () => {
  it("are all ok if it runs as Tandem starts it", () => {
    for (const o of [P2P, { ...P2P, role: "prefill" as const }, NIXL])
      assert.deepEqual(
        vllmFindings(o).filter(({ level }) => level !== FindingLevel.OK),
        [],
      );
  });

  const cases: readonly (readonly [string, DiagnosedVllm, string, string])[] = [
    ["a version without the connector", { ...P2P, facts: { ...P2P.facts, version: "0.24.0" } }, "version", "error"],
    [
      "decode with whole graphs under P2P: garbage",
      withFacts(P2P, { enforceEager: false, cudagraphMode: "FULL_AND_PIECEWISE" }),
      "cuda_graphs",
      "error",
    ],
    [
      "decode with vLLM's default graphs",
      { ...P2P, facts: { ...UNREPORTED, enforceEager: false } },
      "cuda_graphs",
      "error",
    ],
    ["eager decode", withFacts(P2P, { enforceEager: true, cudagraphMode: "FULL" }), "cuda_graphs", "ok"],
    [
      "prefill with whole graphs: a hang",
      withFacts(P2P, { cudagraphMode: "FULL" }, { role: "prefill" }),
      "cuda_graphs",
      "error",
    ],
    [
      "chunked prefill",
      withFacts(P2P, { enforceEager: true, chunkedPrefill: true }, { role: "prefill" }),
      "chunked_prefill",
      "warning",
    ],
    ["an attached engine's graphs", { ...P2P, facts: UNREPORTED, launched: false }, "cuda_graphs", "unknown"],
    ["an attached engine's ids", { ...P2P, launched: false }, "request_ids", "unknown"],
    ["an attached engine's pool", { ...P2P, launched: false }, "host_memory", "unknown"],
    ["a host name in the KV address", { ...P2P, kvAddress: "gpu-1:21001" }, "kv_address", "error"],
    ["a pool as large as the host", { ...P2P, poolGib: 33, ranks: 2 }, "host_memory", "warning"],
    ["a host that is full", { ...P2P, freeMemoryBytes: GIB }, "host_memory", "warning"],
    ["NCCL without peer access", { ...P2P, env: { NCCL_P2P_DISABLE: "1" } }, "nccl", "warning"],
    ["NCCL channels that vLLM overrides", { ...P2P, env: { NCCL_MAX_NCHANNELS: "4" } }, "nccl", "warning"],
    ["an unknown number type", { ...NIXL, facts: { ...NIXL.facts, dtype: "" } }, "dtype", "unknown"],
    ["an unknown model path under NIXL", { ...NIXL, facts: { ...NIXL.facts, modelRoot: "" } }, "model_path", "unknown"],
    ["an API on a port", { ...NIXL, url: "http://127.0.0.1:8000" }, "api_access", "warning"],
    ["an API on a port, with a key", { ...NIXL, url: "http://h:1", hasApiKey: true }, "api_access", "warning"],
    ["KV ports that other machines reach", { ...NIXL, kvHost: "10.0.0.2" }, "kv_access", "warning"],
    ["an attached engine's KV ports", { ...NIXL, launched: false, kvHost: "" }, "kv_access", "unknown"],
    ["an engine without figures", { ...NIXL, facts: { ...NIXL.facts, blockSize: 0 } }, "counters", "warning"],
  ];
  for (const [what, o, check, level] of cases)
    it(`include ${what}: ${level}`, () => assert.equal(levelOf(o, check), level));

  it("say which paths vLLM leaves open in spite of a key", () => {
    const said = vllmFindings({ ...NIXL, url: "http://h:1", hasApiKey: true }).find(
      (one) => one.check === "api_access",
    )!;
    assert.match(
      said.message,
      /\/tokenize, \/invocations and \/metrics open to every user and machine that reaches http:\/\/h:1/,
    );
  });

  it("are not about P2P if KV moves by NIXL", () => {
    const checks = vllmFindings(withFacts(NIXL, { cudagraphMode: "FULL" })).map(({ check }) => check);
    for (const check of ["cuda_graphs", "request_ids", "host_memory", "kv_address", "nccl"])
      assert.ok(!checks.includes(check), check);
  });
});
