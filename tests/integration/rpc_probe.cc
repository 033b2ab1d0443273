// A server for rpc_client.py: a few methods of every kind, and blobs by signed URL. Listens on a port of its
// choice and on a unix socket in the directory that it is given, prints the port, and ends when its stdin
// does.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>

#include "blob/blob_store.h"
#include "blob/blob_urls.h"
#include "gateway/blob_handler.h"
#include "gateway/pages.h"
#include "gateway/root_handler.h"
#include "rpc/router.h"
#include "rpc/server.h"

namespace lydian {
namespace {

// What BlobCreate and BlobGet would answer: /plan?id=&size=&md5=&base= and /get?id=&base=.
class Plans : public http::Handler {
 public:
  Plans(const blob::UrlSigner* signer, std::shared_ptr<http::Handler> rest)
      : signer_(signer), rest_(std::move(rest)) {}
  http::Response Handle(http::Exchange& exchange) override {
    const http::Request& request = exchange.request();
    const std::string base(request.param("base"));
    if (request.path == "/get")
      return {.body = blob::DownloadUrl(*signer_, SystemClock(), base, request.param("id"), 0)};
    if (request.path != "/plan") return rest_->Handle(exchange);
    const uint64_t size = strtoull(std::string(request.param("size")).c_str(), nullptr, 10);
    const blob::UploadPlan plan =
        blob::PlanUpload(*signer_, SystemClock(), base, request.param("id"), size, request.param("md5"));
    std::string lines =
        plan.url + "\n" + std::to_string(plan.part_length) + "\n" + plan.completion_url + "\n";
    for (const std::string& url : plan.part_urls) lines += url + "\n";
    return {.body = lines};
  }

 private:
  const blob::UrlSigner* const signer_;
  const std::shared_ptr<http::Handler> rest_;
};

void AddMethods(rpc::Router& router) {
  router.AddUnary("t.S", "Echo", [](std::string_view request, rpc::Ctx, rpc::RawReply reply) {
    reply(std::string(request));
  });
  router.AddUnary("t.S", "Fail", [](std::string_view request, rpc::Ctx ctx, rpc::RawReply reply) {
    ctx->AddTrailer("x-modal-warning", "old%20client");
    reply(NotFound(std::string(request)));
  });
  router.AddUnary("t.S", "Hold",
                  [](std::string_view, rpc::Ctx ctx, rpc::RawReply reply) { ctx->OnCancel([reply] {}); });
  router.AddServerStream("t.S", "Count",
                         [](std::string_view request, rpc::Ctx, std::shared_ptr<rpc::RawStream> out) {
                           for (int i = 0; i < atoi(std::string(request).c_str()); ++i)
                             out->Write(std::to_string(i));
                           out->Finish({});
                         });
  router.AddBidi("t.S", "Chat", [](rpc::Ctx, std::shared_ptr<rpc::RawStream> out) {
    return rpc::RawReader{.on_message = [out](std::string_view message) -> Status {
                            out->Write("re " + std::string(message));
                            return {};
                          },
                          .on_end = [out] { out->Finish({}); }};
  });
}

Status Serve(const std::string& dir) {
  auto router = std::make_shared<rpc::Router>();
  AddMethods(*router);
  ASSIGN_OR_RETURN(auto store, blob::OpenDirectory({.path = dir}));
  const blob::UrlSigner signer(std::string(32, 'k'));
  auto root = std::make_shared<gateway::RootHandler>(
      std::make_shared<gateway::BlobHandler>(store.get(), &signer, &SystemClock()),
      std::make_shared<gateway::Pages>(nullptr, &signer, [router] { return router->MetricsText(); }));
  auto http = std::make_shared<Plans>(&signer, std::move(root));
  ASSIGN_OR_RETURN(UniqueFd tcp, rpc::Listen("127.0.0.1:0"));
  ASSIGN_OR_RETURN(UniqueFd local, rpc::Listen("unix:" + dir + "/socket"));
  ASSIGN_OR_RETURN(auto tcp_server, rpc::Server::Start({.router = router, .http = http}, tcp.get()));
  ASSIGN_OR_RETURN(auto local_server, rpc::Server::Start({.router = router, .http = http}, local.get()));
  sockaddr_in address{};
  socklen_t length = sizeof address;
  if (getsockname(tcp.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return ErrnoStatus("getsockname");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) {
  }
  return {};
}

}  // namespace
}  // namespace lydian

int main(int argc, char** argv) {
  if (argc != 2) return fprintf(stderr, "usage: rpc_probe DIRECTORY\n"), 2;
  const lydian::Status status = lydian::Serve(argv[1]);
  if (!status.ok()) fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
