// Checks the record that an instance publishes, because others can write to a registry.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { ADDRESS } from "../common/address.ts";
import { ServiceError } from "../common/errors.ts";

/** @throws ServiceError `invalid_request` that names the field */
export function checkInfo(info: Info | undefined): Info {
  const bad = (field: string, why: string): ServiceError =>
    new ServiceError("invalid_request", `info.${field} ${why}.`, { param: field });
  if (info === undefined) throw new ServiceError("invalid_request", "info is missing.", { param: "info" });
  if (info.instanceId === "" || info.instanceId.length > 128) throw bad("instance_id", "must have 1 to 128 characters");
  if (info.role !== Role.PREFILL && info.role !== Role.DECODE) throw bad("role", "must be prefill or decode");
  if (info.model === "") throw bad("model", "is missing");
  if (info.connector === "") throw bad("connector", "is missing");
  if (!ADDRESS.test(info.grpcAddress)) throw bad("grpc_address", "must be host:port");
  if (info.kvAddress !== "" && !ADDRESS.test(info.kvAddress)) throw bad("kv_address", "must be host:port or empty");
  return info;
}
