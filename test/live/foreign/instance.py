"""An instance that knows of Tandem only its contracts, on a server of gRPC's C core with its default options.

Run as `instance.py DESCRIPTORS ROLE QUIET_S`; says its port and serves until its standard input ends. Each prefill, and
each answer after its first token, says nothing for QUIET_S seconds.
"""
import json
import sys
import time
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTORS, ROLE, QUIET_S = sys.argv[1], sys.argv[2], float(sys.argv[3])

pool = descriptor_pool.DescriptorPool()
with open(DESCRIPTORS, "rb") as file:
    for proto in descriptor_pb2.FileDescriptorSet.FromString(file.read()).file:
        pool.Add(proto)


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tandem.{name}"))


Info, Load = message("instance.v1.Info"), message("instance.v1.Load")
LOAD = Load(state=2, free_slots=8)


def get_info(_request, _context):
    return message("instance.v1.GetInfoResponse")(info=INFO, load=LOAD)


def watch_load(requests, _context):
    """The least that the contract asks for: an answer to each message."""
    for _ in requests:
        yield message("instance.v1.WatchLoadResponse")(load=LOAD)


def prefill(_request, _context):
    time.sleep(QUIET_S)
    return message("prefill.v1.PrefillResponse")(prompt_tokens=3)


def decode(steps, _context):
    Response = message("decode.v1.DecodeResponse")
    reserve = next(steps).reserve
    yield Response(reserved=message("decode.v1.Reserved")(hold_ms=60_000))
    if not next(steps).HasField("start"):
        return

    def event(text):
        choice = {"index": 0, "text": text, "finish_reason": None}
        body = {"id": reserve.identity.id, "object": "text_completion", "created": 1, "model": "foreign", "choices": [choice]}
        return f"data: {json.dumps(body)}\n\n"

    yield Response(events=event("slow "), token_count=1)
    time.sleep(QUIET_S)
    end = message("decode.v1.End")(finish_reason=1, prompt_tokens=3, completion_tokens=2)
    yield Response(events=event("but sure"), token_count=1, end=end)


KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def handlers(service, functions):
    methods = {}
    for method in pool.FindServiceByName(service).methods:
        if method.name not in functions:
            continue
        kind = KINDS[method.client_streaming, method.server_streaming]
        request, response = (message_factory.GetMessageClass(d) for d in (method.input_type, method.output_type))
        methods[method.name] = kind(functions[method.name], request.FromString, response.SerializeToString)
    return grpc.method_handlers_generic_handler(service, methods)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers(
    (
        handlers("tandem.instance.v1.InstanceService", {"GetInfo": get_info, "WatchLoad": watch_load}),
        handlers("tandem.prefill.v1.PrefillService", {"Prefill": prefill}),
        handlers("tandem.decode.v1.DecodeService", {"Decode": decode}),
    )
)
port = server.add_insecure_port("127.0.0.1:0")
INFO = Info(
    instance_id=f"{ROLE}-python",
    role={"prefill": 1, "decode": 2}[ROLE],
    model="foreign",
    max_model_len=100,
    connector="p2p-zmq",
    kv_address="127.0.0.1:9",
    grpc_address=f"127.0.0.1:{port}",
    engine="sim",
    slot_limit=8,
)
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(None)
