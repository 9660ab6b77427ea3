// An instance that knows of Tandem only its contracts, on grpc-go's server with its default options, which takes frequent
// PINGs for an attack.
//
// Run as `foreign ROLE QUIET`, a role and a duration; says its port and serves until its standard input ends. Each prefill,
// and each answer after its first token, says nothing for QUIET.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	decodev1 "foreign/gen/tandem/decode/v1"
	instancev1 "foreign/gen/tandem/instance/v1"
	prefillv1 "foreign/gen/tandem/prefill/v1"

	"google.golang.org/grpc"
)

type instance struct {
	instancev1.UnimplementedInstanceServiceServer
	info *instancev1.Info
}

func load() *instancev1.Load {
	return &instancev1.Load{State: instancev1.State_STATE_SERVING, FreeSlots: 8}
}

func (i instance) GetInfo(context.Context, *instancev1.GetInfoRequest) (*instancev1.GetInfoResponse, error) {
	return &instancev1.GetInfoResponse{Info: i.info, Load: load()}, nil
}

// The least that the contract asks for: an answer to each message.
func (i instance) WatchLoad(stream instancev1.InstanceService_WatchLoadServer) error {
	for {
		if _, err := stream.Recv(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(&instancev1.WatchLoadResponse{Load: load()}); err != nil {
			return err
		}
	}
}

type prefill struct {
	prefillv1.UnimplementedPrefillServiceServer
	quiet time.Duration
}

func (p prefill) Prefill(context.Context, *prefillv1.PrefillRequest) (*prefillv1.PrefillResponse, error) {
	time.Sleep(p.quiet)
	return &prefillv1.PrefillResponse{PromptTokens: 3}, nil
}

type decode struct {
	decodev1.UnimplementedDecodeServiceServer
	quiet time.Duration
}

func (d decode) Decode(stream decodev1.DecodeService_DecodeServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := stream.Send(&decodev1.DecodeResponse{Reserved: &decodev1.Reserved{HoldMs: 60_000}}); err != nil {
		return err
	}
	if second, err := stream.Recv(); err != nil || second.GetStart() == nil {
		return nil
	}
	id := first.GetReserve().GetIdentity().GetId()
	if err := stream.Send(&decodev1.DecodeResponse{Events: event(id, "slow "), TokenCount: 1}); err != nil {
		return err
	}
	time.Sleep(d.quiet)
	end := &decodev1.End{FinishReason: decodev1.FinishReason_FINISH_REASON_STOP, PromptTokens: 3, CompletionTokens: 2}
	return stream.Send(&decodev1.DecodeResponse{Events: event(id, "but sure"), TokenCount: 1, End: end})
}

func event(id, text string) string {
	choice := map[string]any{"index": 0, "text": text, "finish_reason": nil}
	body := map[string]any{"id": id, "object": "text_completion", "created": 1, "model": "foreign", "choices": []any{choice}}
	data, _ := json.Marshal(body)
	return fmt.Sprintf("data: %s\n\n", data)
}

func main() {
	role := map[string]instancev1.Role{"prefill": instancev1.Role_ROLE_PREFILL, "decode": instancev1.Role_ROLE_DECODE}[os.Args[1]]
	quiet, err := time.ParseDuration(os.Args[2])
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	instancev1.RegisterInstanceServiceServer(server, instance{info: &instancev1.Info{
		InstanceId:  os.Args[1] + "-go",
		Role:        role,
		Model:       "foreign",
		MaxModelLen: 100,
		Connector:   "p2p-zmq",
		KvAddress:   "127.0.0.1:9",
		GrpcAddress: listener.Addr().String(),
		Engine:      "sim",
		SlotLimit:   8,
	}})
	prefillv1.RegisterPrefillServiceServer(server, prefill{quiet: quiet})
	decodev1.RegisterDecodeServiceServer(server, decode{quiet: quiet})
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		server.Stop()
	}()
	if err := server.Serve(listener); err != nil {
		panic(err)
	}
}
