#include "build/stage_tool.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

namespace lydian::build {
namespace {

constexpr int kFilesAtOnce = 64;  // descriptors in one frame
constexpr uint32_t kPids = 8;

// Where something is mounted in the tool's container; its root is read-only, so all of it must be there.
constexpr const char* kFolders[] = {"/proc", "/sys", "/dev", "/etc", "/stage", "/source"};
constexpr const char* kFiles[] = {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/tool"};

}  // namespace

Result<UniqueFd> TextFile(const std::string& text) {
  UniqueFd file(::memfd_create("lydian-text", MFD_CLOEXEC));
  if (!file.valid()) return ErrnoStatus("making a file in memory");
  RETURN_IF_ERROR(WriteAll(file.get(), text));
  return file;
}

Status StageWork::Push(const StageRequest& request, std::vector<UniqueFd> fds) {
  writer_.Push(request.SerializeAsString(), std::move(fds));
  while (!writer_.empty()) {
    ASSIGN_OR_RETURN(bool sent, writer_.Write(control_.get()));
    pollfd room = {control_.get(), POLLOUT, 0};
    if (!sent && ::poll(&room, 1, -1) < 0 && errno != EINTR) return ErrnoStatus("talking to the stage tool");
  }
  return OkStatus();
}

Status StageWork::FlushFiles() {
  if (contents_.empty()) return OkStatus();
  StageRequest request;
  *request.mutable_put() = std::move(files_);
  files_.Clear();
  std::vector<UniqueFd> contents = std::move(contents_);
  contents_.clear();
  return Push(request, std::move(contents));
}

Status StageWork::Ask(const StageRequest& request) {
  RETURN_IF_ERROR(FlushFiles());
  return Push(request, {});
}

Result<StageReply> StageWork::Answer() {
  for (;;) {
    ASSIGN_OR_RETURN(auto frame, reader_.Next());
    if (!frame) {
      ASSIGN_OR_RETURN(auto outcome, reader_.Read(control_.get()));
      if (outcome == spawner::FrameReader::Outcome::kEnd) return Unavailable("the stage tool has ended");
      continue;
    }
    StageReply reply;
    if (!reply.ParseFromString(*frame)) return Internal("the stage tool's answer can't be read");
    if (!reply.has_error()) return reply;
    const auto& error = reply.error();
    const int code =
        error.code() > 0 && error.code() <= 16 ? error.code() : static_cast<int>(Code::kInternal);
    return Status(static_cast<Code>(code), error.message(), error.error());
  }
}

Status StageWork::Begin(const StageTerms& terms, const StageLimits& limits) {
  StageRequest request;
  StageBegin* begin = request.mutable_begin();
  begin->set_max_bytes(limits.bytes);
  begin->set_max_entries(limits.entries);
  begin->set_max_depth(limits.depth);
  begin->set_owner(terms.owner);
  begin->set_mode(terms.mode);
  return Push(request, {});
}

Status StageWork::Put(StageFile file, UniqueFd content) {
  *files_.add_files() = std::move(file);
  contents_.push_back(std::move(content));
  return files_.files_size() < kFilesAtOnce ? OkStatus() : FlushFiles();
}

Status StageWork::Copy(StageCopy copy) {
  StageRequest request;
  *request.mutable_copy() = std::move(copy);
  return Ask(request);
}

Status StageWork::Unpack(StageUnpack unpack, UniqueFd archive) {
  RETURN_IF_ERROR(FlushFiles());
  StageRequest request;
  *request.mutable_unpack() = std::move(unpack);
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(archive));
  return Push(request, std::move(fds));
}

Status StageWork::MakeFolder(const std::string& path) {
  StageRequest request;
  request.mutable_make_folder()->set_path(path);
  return Ask(request);
}

Result<StageOwner> StageWork::FindOwner(const std::string& text) {
  StageRequest request;
  request.mutable_find_owner()->set_text(text);
  RETURN_IF_ERROR(Ask(request));
  ASSIGN_OR_RETURN(StageReply reply, Answer());
  if (!reply.has_owner()) return Internal("the stage tool answered something else");
  return reply.owner();
}

Result<std::string> StageWork::FindLibc() {
  StageRequest request;
  request.mutable_find_libc();
  RETURN_IF_ERROR(Ask(request));
  ASSIGN_OR_RETURN(StageReply reply, Answer());
  if (!reply.has_libc()) return Internal("the stage tool answered something else");
  return reply.libc().version();
}

Result<StageDone> StageWork::End() {
  StageRequest request;
  request.mutable_end();
  Status asked = Ask(request);
  auto reply = Answer();  // says why, when asking failed because the tool has gone
  if (!reply.ok()) return reply.status();
  RETURN_IF_ERROR(asked);
  if (!reply->has_done()) return Internal("the stage tool answered something else");
  return reply->done();
}

Status StageTool::Prepare() {
  if (tool_path_.empty())
    return NotFound("lydian-stage, which works on files of images, is not beside lydian");
  for (const char* folder : kFolders) RETURN_IF_ERROR(MakeDirs(root_dir_ + folder, 0755));
  for (const char* file : kFiles) RETURN_IF_ERROR(WriteFileAtomic(root_dir_ + file, "", 0644));
  return OkStatus();
}

Status StageTool::AddTree(Job& job, const char* target, const std::vector<std::string>& ids,
                          const std::string& writable_dir) {
  Mount* mount = job.add_mounts();
  mount->set_kind(Mount::OVERLAY);
  mount->set_target(target);
  mount->set_writable_dir(writable_dir);
  for (const auto& id : ids) {
    ASSIGN_OR_RETURN(image::LayerInfo info, layers_->Find(id));
    mount->add_lowers(info.path);
  }
  return OkStatus();
}

Result<Job> StageTool::MakeJob(const StageTrees& trees) {
  Job job;
  job.mutable_rootfs()->add_lowers(root_dir_);
  job.mutable_rootfs()->set_read_only(true);
  job.mutable_rootfs()->set_bare(true);
  Mount* tool = job.add_mounts();
  tool->set_kind(Mount::BIND);
  tool->set_source(tool_path_);
  tool->set_target("/tool");
  tool->set_read_only(true);
  tool->set_idmap(true);
  if (trees.layer_ids.empty() && trees.writable_dir.empty()) return InvalidArgument("a stage without layers");
  RETURN_IF_ERROR(AddTree(job, "/stage", trees.layer_ids, trees.writable_dir));
  if (!trees.source_ids.empty()) RETURN_IF_ERROR(AddTree(job, "/source", trees.source_ids, ""));
  Process* process = job.mutable_process();
  process->add_argv("/tool");
  process->set_control_fd(true);
  job.set_hostname("stage");
  job.mutable_network()->set_mode(Network::NONE);
  job.mutable_limits()->set_memory_bytes(limits_.memory_bytes);
  job.mutable_limits()->set_milli_cpu_request(1000);
  job.mutable_limits()->set_pids(kPids);
  return job;
}

Result<StageDone> StageTool::Run(const StageTrees& trees, const StageTerms& terms, CancelToken* cancel,
                                 const std::function<Status(StageWork&)>& work) {
  ASSIGN_OR_RETURN(auto pin, layers_->Pin(trees.layer_ids));
  ASSIGN_OR_RETURN(auto source_pin, layers_->Pin(trees.source_ids));
  ASSIGN_OR_RETURN(Job job, MakeJob(trees));
  Result<StageDone> done = Internal("the stage tool was not asked");
  auto talk = [&](UniqueFd control) {
    StageWork conversation(std::move(control));
    Status status = conversation.Begin(terms, limits_);
    if (status.ok()) status = work(conversation);
    done = conversation.End();
    // What went wrong here is said, unless the tool knows more: it is why sending failed.
    if (!status.ok() && (done.ok() || done.status().code() == Code::kUnavailable)) done = status;
  };
  ASSIGN_OR_RETURN(RunResult result, containers_->Run(std::move(job), nullptr, cancel, talk));
  if (done.ok() || done.status().code() != Code::kUnavailable) return done;
  return ResourceExhausted("the work on files ended: " + result.How() +
                           (result.tail.empty() ? "" : "\n" + result.tail));
}

}  // namespace lydian::build
