// A server on a unix socket, fed with one connection's bytes at a time.
#pragma once

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "rpc/http.h"
#include "rpc/server.h"

namespace lydian::fuzz {

class AnyCaller : public rpc::Authenticator {
 public:
  Result<rpc::Caller> Authenticate(const Headers& headers, std::string_view /*method*/,
                                   const rpc::MethodOptions& /*options*/) override {
    (void)headers("x-modal-token-id");
    return rpc::Caller{.kind = rpc::Caller::Kind::kUser, .workspace_id = "ws"};
  }
};

// Answers with what it understood, after it has read the body.
class EchoHttp : public http::Handler {
 public:
  http::Response Handle(http::Exchange& exchange) override {
    size_t bytes = 0;
    for (;;) {
      auto part = exchange.ReadBody();
      if (!part.ok() || part->empty()) break;
      bytes += part->size();
    }
    const http::Request& request = exchange.request();
    http::Response response;
    response.headers.emplace_back("x-length", std::string(request.header("content-length")));
    response.body = http::EscapeHtml(request.path) + " " + http::EscapeHtml(request.param("q")) + " " +
                    std::to_string(bytes);
    return response;
  }
};

class ServerHarness {
 public:
  static ServerHarness& Get() {
    static auto* harness = new ServerHarness();
    return *harness;
  }

  // Sends `bytes` and the end of the stream, and returns when the server has closed the connection. It must
  // not wait for more than has come: libFuzzer's time limit, or the socket's here, says so.
  void Feed(std::string_view bytes) const {
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK(fd.valid());
    const timeval limit{20, 0};
    CHECK(setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    CHECK(connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    while (!bytes.empty()) {
      const ssize_t sent = send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;  // libFuzzer's clock
      if (sent <= 0) break;                      // it has refused us already
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    shutdown(fd.get(), SHUT_WR);
    std::array<char, 4096> answer;
    ssize_t got = 0;
    do {
      got = recv(fd.get(), answer.data(), answer.size(), 0);
    } while (got > 0 || (got < 0 && errno == EINTR));
    CHECK(got == 0 || errno == ECONNRESET);
  }

 private:
  ServerHarness() {
    char folder[] = "/tmp/lydian-fuzz-XXXXXX";
    CHECK(mkdtemp(folder) != nullptr);
    path_ = std::string(folder) + "/socket";
    auto router = std::make_shared<rpc::Router>();
    router->AddUnary("t.T", "Echo",
                     [](std::string_view request, const rpc::Ctx& ctx, const rpc::RawReply& reply) {
                       ctx->AddTrailer("x-back", ctx->header("x-forth"));
                       reply(std::string(request));
                     });
    router->AddUnary("t.T", "Once",
                     [](std::string_view request, const rpc::Ctx&, const rpc::RawReply& reply) {
                       reply(InvalidArgument(std::string(request)));
                     },
                     {.idempotent = true, .max_request_bytes = 64});
    router->AddServerStream(
        "t.T", "Twice",
        [](std::string_view request, const rpc::Ctx&, const std::shared_ptr<rpc::RawStream>& out) {
          out->Write(std::string(request));
          out->Write(std::string(request));
          out->Finish(OkStatus());
        });
    router->AddBidi("t.T", "Chat", [](const rpc::Ctx&, const std::shared_ptr<rpc::RawStream>& out) {
      return rpc::RawReader{.on_message =
                                [out](std::string_view message) {
                                  out->Write(std::string(message));
                                  return OkStatus();
                                },
                            .on_end = [out] { out->Finish(OkStatus()); }};
    });
    auto listener = rpc::Listen("unix:" + path_);
    CHECK(listener.ok());
    auto server = rpc::Server::Start({.router = std::move(router),
                                      .authenticator = std::make_shared<AnyCaller>(),
                                      .http = std::make_shared<EchoHttp>()},
                                     listener->get());
    CHECK(server.ok());
    server_ = std::move(*server);
    // The connections wait in the listener's backlog; nobody needs the name any more once the program ends.
    static std::string leave;
    leave = folder;
    std::atexit([] { (void)RemoveTree(leave); });
  }

  std::string path_;
  std::unique_ptr<rpc::Server> server_;
};

}  // namespace lydian::fuzz
