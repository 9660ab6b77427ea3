// Lines as vLLM 0.32 wrote them on a CPU.
import assert from "node:assert/strict";
import { createOutputTail } from "../../services/common/output-tail.ts";
import { p2pKvLoss, readSettings, readVllmOutput, vllmReason } from "../../services/engine/vllm-output.ts";

const CONFIG =
  "(EngineCore pid=7706) INFO 11-22 16:31:46 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/models/tiny', " +
  "speculative_config=None, tokenizer='/models/tiny', dtype=torch.float32, max_seq_len=512, tensor_parallel_size=1, enforce_eager=True, " +
  "kv_cache_dtype=auto, device_config=cpu, seed=0, served_model_name=tiny, enable_prefix_caching=True, enable_chunked_prefill=True, " +
  "compilation_config={'mode': <CompilationMode.NONE: 0>, 'cudagraph_mode': <CUDAGraphMode.NONE: 0>, 'cudagraph_num_of_warmups': 0}";

const LINES = [
  "(APIServer pid=6863) INFO 11-22 16:31:33 [api_utils.py:286] non-default args: {'model_tag': '/models/tiny'}",
  CONFIG,
  "(EngineCore pid=7706) INFO 11-22 16:31:47 [cpu_model_runner.py:68] Starting to load model /models/tiny...",
  "Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]",
  "Loading safetensors checkpoint shards: 100% Completed | 2/2 [00:00<00:00, 88.74it/s]",
  "(EngineCore pid=7706) INFO 11-22 16:31:49 [kv_cache_utils.py:2327] CPU KV cache size: 32,768 tokens",
  "(EngineCore pid=7706) INFO 11-22 16:31:50 [base_worker.py:1416] Registering KV_Caches. use_mla: False",
  "(EngineCore pid=7706) INFO 11-22 16:31:50 [core.py:402] init engine (profile, create kv cache, warmup model) took 0.75 s",
  "(APIServer pid=6863) INFO 11-22 16:31:51 [entry.py:140] Starting vLLM server on http://127.0.0.1:28999",
  "INFO:     Application startup complete.",
];

describe("vLLM's output while it loads", () => {
  it("names each phase once", () => {
    const output = readVllmOutput();
    assert.deepEqual(
      LINES.map((line) => output.phaseOf(line)).filter((phase) => phase !== undefined),
      [
        "reading the model's configuration",
        "starting the engine process",
        "loading weights",
        "loading weights (0 of 2 files)",
        "loading weights (2 of 2 files)",
        "allocating the KV cache",
        "opening the KV side channel",
        "warming up",
        "opening its API",
      ],
    );
    assert.equal(output.learned().dtype, "float32");
    assert.equal(output.learned().kvCacheBytes, undefined);
    // Of each of two ranks, as vLLM 0.23 writes it.
    output.phaseOf(CONFIG.replace("tensor_parallel_size=1", "tensor_parallel_size=2"));
    output.phaseOf("(EngineCore pid=1) INFO 11-22 16:31:49 [gpu_worker.py:436] Available KV cache memory: 1.5 GiB");
    assert.equal(output.learned().kvCacheBytes, 3 * 2 ** 30);
  });

  it("shows what vLLM made of its flags", () => {
    assert.deepEqual(readSettings(CONFIG), {
      modelRoot: "/models/tiny",
      dtype: "float32",
      tpSize: 1,
      enforceEager: true,
      chunkedPrefill: true,
      cudagraphMode: "NONE",
      kvDtype: "auto",
    });
    assert.deepEqual(readSettings("anything else"), {});
  });

  it("gives the reason of a failure, not its stack", () => {
    assert.deepEqual(
      vllmReason([
        "(EngineCore pid=9) ERROR 11-22 16:00:00 [core.py:1] Traceback (most recent call last):",
        '(EngineCore pid=9) ERROR 11-22 16:00:00 [core.py:1]   File "x.py", line 1, in f',
        "(EngineCore pid=9) ERROR 11-22 16:00:00 [core.py:1] ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
        "(EngineCore pid=9) Process EngineCore:",
        "(APIServer pid=8) Traceback (most recent call last):",
        '(APIServer pid=8)   File "/site/vllm/entrypoints/cli/main.py", line 78, in main',
        "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
      ]),
      ["ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."],
    );
    assert.deepEqual(vllmReason(["usage: vllm serve [options]", "vllm serve: error: unrecognized arguments: --nope"]), [
      "vllm serve: error: unrecognized arguments: --nope",
    ]);
    assert.deepEqual(vllmReason(["a", "b"]), ["a", "b"]);
  });
});

describe("vLLM with P2P NCCL that lost KV", () => {
  it("is recognised by its lines", () => {
    assert.match(
      p2pKvLoss(
        "(EngineCore pid=9) WARNING 11-22 16:00:00 [p2p_nccl_engine.py:424] 🔴[PUT]Recv Tensor, Out Of Memory, 127.0.0.1:2👈127.0.0.1:1, data:{}",
      )!,
      /no memory for KV/,
    );
    assert.match(
      p2pKvLoss("(EngineCore pid=9) WARNING 11-22 16:00:00 [p2p_nccl_connector.py:202] 🚧kv_cache is None, cmpl-1-0")!,
      /no memory for KV/,
    );
    assert.match(p2pKvLoss("ValueError: Insufficient memory")!, /pool for KV is full/);
    // KV that went to the host's pool is there.
    assert.equal(
      p2pKvLoss("🔴[PUT]Recv Tensor, Out Of Threshold, 127.0.0.1:2👈127.0.0.1:1, data:{}, addr:7"),
      undefined,
    );
  });
});

describe("an engine's output", () => {
  it("never shows a secret", () => {
    const seen: string[] = [];
    const tail = createOutputTail(5, (line) => seen.push(line), ["hf_abc", ""]);
    tail.push(Buffer.from("token=hf_abc&x\nrest hf_abc"));
    assert.deepEqual(seen, ["token=[hidden]&x"]);
    assert.deepEqual(tail.lines(), ["token=[hidden]&x", "rest [hidden]"]);
  });

  it("keeps only the last state of a progress bar", () => {
    const tail = createOutputTail(5, () => {});
    tail.push(Buffer.from(" 1%\r 50%\r100%\r\nend\n"));
    assert.deepEqual(tail.lines(), ["100%", "end"]);
  });
});
