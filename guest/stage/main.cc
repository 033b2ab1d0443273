// lydian-stage: does all work on files of a build's stage, in a container of its own, where the stage lies at
// /stage and what is copied from at /source. Asked over descriptor 3 (proto/lydian/stage.proto,
// docs/formats/stage.md). It trusts neither tree: whatever it can be made to do, it does as the container's
// root, on these two trees alone.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <optional>

#include "base/fd.h"
#include "guest/stage/copier.h"
#include "guest/stage/owners.h"
#include "guest/stage/unpack.h"
#include "guest/stage/view.h"
#include "lydian/stage.pb.h"
#include "spawner/frames.h"

namespace lydian::stage {
namespace {

constexpr int kControl = 3;

UniqueFd OpenTree(const char* path) { return UniqueFd(::open(path, O_PATH | O_DIRECTORY | O_CLOEXEC)); }

// From the library itself: "GNU C Library (...) stable release version 2.36."
std::string LibcVersion(const View& view) {
  for (const char* path : {"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"}) {
    auto bytes = view.Read(path, size_t{16} << 20);
    if (!bytes.ok()) continue;
    const std::string mark = "stable release version ";
    size_t at = bytes->find(mark);
    if (at == std::string::npos) continue;
    std::string version;
    for (at += mark.size(); at < bytes->size() && version.size() < 16; ++at) {
      const char c = (*bytes)[at];
      if (c != '.' && (c < '0' || c > '9')) break;
      version += c;
    }
    while (version.ends_with(".")) version.pop_back();
    return version;
  }
  return view.Stat("/lib/ld-musl-x86_64.so.1").ok() ? "musl" : "";
}

class Tool {
 public:
  Tool() : stage_(OpenTree("/stage")), source_(OpenTree("/source")) {}

  // Until the end is asked for, or nobody is there to ask any more.
  int Serve() {
    for (;;) {
      auto frame = NextFrame();
      if (!frame.ok() || !frame->has_value()) return 1;
      StageRequest request;
      if (!request.ParseFromString(**frame)) return 1;
      const bool last = request.has_end();
      if (!failed_) {
        Status status = Handle(request);
        if (!status.ok() && !Fail(status)) return 1;
      }
      if (last) return failed_ ? 1 : 0;
    }
  }

 private:
  Result<std::optional<std::string>> NextFrame() {
    for (;;) {
      ASSIGN_OR_RETURN(auto frame, reader_.Next());
      if (frame) return frame;
      ASSIGN_OR_RETURN(auto outcome, reader_.Read(kControl));
      if (outcome == spawner::FrameReader::Outcome::kEnd) return std::optional<std::string>();
    }
  }

  bool Send(const StageReply& reply) {
    spawner::FrameWriter writer;
    writer.Push(reply.SerializeAsString(), {});
    while (!writer.empty()) {
      auto sent = writer.Write(kControl);
      if (!sent.ok()) return false;
      struct pollfd room {
        kControl, POLLOUT, 0
      };
      if (!*sent) ::poll(&room, 1, -1);
    }
    return true;
  }

  bool Fail(const Status& status) {
    failed_ = true;
    StageReply reply;
    reply.mutable_error()->set_code(static_cast<int>(status.code()));
    reply.mutable_error()->set_error(status.error());
    reply.mutable_error()->set_message(status.message());
    return Send(reply);
  }

  Status Handle(const StageRequest& request) {
    try {
      return Do(request);
    } catch (const std::exception& error) {  // out of memory, most likely
      return ResourceExhausted(std::string("the work on files failed: ") + error.what());
    }
  }

  Status Do(const StageRequest& request) {
    switch (request.kind_case()) {
      case StageRequest::kBegin:
        return Begin(request.begin());
      case StageRequest::kPut:
        return Put(request.put());
      case StageRequest::kCopy: {
        const auto& copy = request.copy();
        return Copier(stage_, terms_, budget_)
            .Copy(source_, {copy.patterns().begin(), copy.patterns().end()}, copy.destination(),
                  copy.source_name());
      }
      case StageRequest::kUnpack: {
        ASSIGN_OR_RETURN(auto fds, reader_.TakeFds(1));
        const UnpackOptions options{request.unpack().path(), request.unpack().whiteouts(), terms_.max_depth};
        return Unpack(stage_, fds[0].get(), options, budget_).With("unpacking " + request.unpack().name());
      }
      case StageRequest::kMakeFolder:
        return stage_.MakeFolder(request.make_folder().path(), terms_.owner, budget_).status();
      case StageRequest::kFindOwner:
        return TellOwner(request.find_owner().text());
      case StageRequest::kFindLibc: {
        StageReply reply;
        reply.mutable_libc()->set_version(LibcVersion(stage_));
        return Answer(reply);
      }
      case StageRequest::kEnd: {
        StageReply reply;
        reply.mutable_done()->set_bytes(budget_.bytes());
        reply.mutable_done()->set_entries(budget_.entries());
        return Answer(reply);
      }
      case StageRequest::KIND_NOT_SET:
        break;
    }
    return Unimplemented("the stage tool does not know the request");
  }

  Status Answer(const StageReply& reply) {
    return Send(reply) ? OkStatus() : Unavailable("nobody hears the answer");
  }

  Status Begin(const StageBegin& begin) {
    if (stage_.root() < 0) return Internal("no stage is mounted");
    budget_.Set(begin.max_bytes(), begin.max_entries());
    terms_.max_depth = begin.max_depth();
    terms_.mode = begin.mode();
    terms_.keep_owner = begin.owner().empty();
    if (begin.owner().empty()) return OkStatus();
    ASSIGN_OR_RETURN(Owner owner, FindOwner(stage_, begin.owner()));
    terms_.owner = owner.ids;
    return OkStatus();
  }

  Status Put(const StagePut& put) {
    ASSIGN_OR_RETURN(auto contents, reader_.TakeFds(static_cast<size_t>(put.files_size())));
    Copier copier(stage_, terms_, budget_);
    for (int i = 0; i < put.files_size(); ++i) {
      const auto& file = put.files(i);
      const int content = contents[static_cast<size_t>(i)].get();
      if (file.unpack() && IsArchive(content)) {
        const UnpackOptions options{file.path(), false, terms_.max_depth};
        RETURN_IF_ERROR(stage_.MakeFolder(file.path(), terms_.owner, budget_).status());
        RETURN_IF_ERROR(Unpack(stage_, content, options, budget_).With("unpacking " + file.name()));
        continue;
      }
      RETURN_IF_ERROR(copier.Put(file.path(), file.name(), file.mode(), content));
    }
    return OkStatus();
  }

  Status TellOwner(const std::string& text) {
    ASSIGN_OR_RETURN(Owner owner, FindOwner(stage_, text));
    StageReply reply;
    reply.mutable_owner()->set_uid(owner.ids.uid);
    reply.mutable_owner()->set_gid(owner.ids.gid);
    reply.mutable_owner()->set_home(owner.home);
    reply.mutable_owner()->set_name(owner.name);
    return Answer(reply);
  }

  View stage_, source_;
  Terms terms_;
  Budget budget_;
  spawner::FrameReader reader_;
  bool failed_ = false;
};

}  // namespace
}  // namespace lydian::stage

int main() {
  ::umask(0);
  return lydian::stage::Tool().Serve();
}
