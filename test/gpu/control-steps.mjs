// Controls of the GPU run: the doctor must find both. Started by hand, since the launcher refuses them.
import { post, randomIds } from "./ask.mjs";
import { bare } from "./deployments.mjs";
import { step } from "./report.mjs";
import { doctor, freePort, instances, tandem, until } from "./servers.mjs";
import { OUT, TOKEN } from "./settings.mjs";

export async function controlSteps() {
  const p2p = (role, kvPort, port) => [
    "--kv-transfer-config",
    JSON.stringify({
      kv_connector: "P2pNcclConnector",
      kv_role: role,
      kv_buffer_size: role === "kv_producer" ? "1e1" : "8e9",
      kv_port: String(kvPort),
      kv_connector_extra_config: {
        send_type: "PUT_ASYNC",
        nccl_num_channels: "16",
        mem_pool_size_gb: 4,
        http_port: String(port),
      },
    }),
  ];
  const ENV = { VLLM_HOST_IP: "127.0.0.1", VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1" };
  const control = (name, decodeFlags) =>
    step(name, async () => {
      const [pPort, dPort] = [await freePort(), await freePort()];
      const prefill = await bare(
        `${name}-prefill`,
        [
          "--enforce-eager",
          "--no-enable-chunked-prefill",
          "--gpu-memory-utilization",
          "0.6",
          ...p2p("kv_producer", pPort, 1),
        ],
        { ...ENV, CUDA_VISIBLE_DEVICES: "0" },
      );
      const decode = await bare(
        `${name}-decode`,
        ["--gpu-memory-utilization", "0.6", ...decodeFlags, ...p2p("kv_consumer", dPort, 2)],
        { ...ENV, CUDA_VISIBLE_DEVICES: "1" },
      );
      const [rest, grpc] = [await freePort(), await freePort()];
      const wrap = (role, engine, kvPort) =>
        tandem(
          [
            role,
            "--grpc.listen",
            "127.0.0.1:0",
            "--registry.address",
            `127.0.0.1:${grpc}`,
            "--engine.attach",
            engine.url,
            "--connector",
            "p2p-nccl",
            "--engine.kv_address",
            `127.0.0.1:${kvPort}`,
          ],
          `${OUT}/${name}-${role}-wrapper.log`,
          { TANDEM_TOKEN: TOKEN },
        );
      const router = tandem(
        ["router", "--rest.listen", `127.0.0.1:${rest}`, "--grpc.listen", `127.0.0.1:${grpc}`],
        `${OUT}/${name}-router.log`,
        { TANDEM_TOKEN: TOKEN },
      );
      const all = [router, wrap("prefill", prefill, pPort), wrap("decode", decode, dPort)];
      const url = `http://127.0.0.1:${rest}`;
      try {
        await until("both are known", async () => (await instances(url, TOKEN)).length === 2, 120_000);
        // The router has found it out by its own probes, and the doctor says so of the instances that are out for it.
        const isWrong = ({ finding }) =>
          /ERROR/.test(finding.level) && /does not answer from the KV/.test(finding.message);
        let found = [];
        await until(
          "the verdict",
          async () => (found = (await doctor(url, TOKEN, `${OUT}/${name}-doctor.json`)).filter(isWrong)).length > 0,
          120_000,
        ).catch(() => {});
        const served = (await post(url, "/v1/completions", { model: "m", prompt: randomIds(1, 500), max_tokens: 1 }))
          .status;
        const foundByDoctor = found.length > 0;
        return {
          ok: foundByDoctor && served !== 200,
          foundByDoctor,
          findings: found.map(({ finding }) => finding.message),
          servedStatus: served,
        };
      } finally {
        for (const one of [...all, prefill, decode]) await one.stop();
      }
    });
  await control("control_default_graphs", []);
  await control("control_other_weights", ["--enforce-eager", "--load-format", "dummy"]);
}
