#include "build/stage_steps.h"

#include <fcntl.h>

#include "base/paths.h"

namespace lydian::build {
namespace {

// Content of a file of the context: a file of our own, named by its digest.
Result<UniqueFd> OpenContent(const Fetcher& fetch, const std::string& sha256) {
  ASSIGN_OR_RETURN(std::string path, fetch(sha256));
  UniqueFd file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!file.valid()) return ErrnoStatus("opening content " + sha256);
  return file;
}

StageFile FileOf(const ContextMatch& match, const image::Step& step) {
  StageFile file;
  file.set_mode(match.file->mode() == 0 ? 0644 : match.file->mode());
  if (match.in_folder) {
    file.set_path(JoinPath(step.destination, std::string(match.relative)));
  } else {
    file.set_path(step.destination);
    file.set_name(BaseName(std::string(match.source)));
    file.set_unpack(step.unpack);
  }
  return file;
}

}  // namespace

Status CopyFromContext(StageTool& tool, const StageTrees& trees, const image::Step& step,
                       const std::vector<ContextMatch>& matches, const Fetcher& fetch, CancelToken* cancel) {
  auto work = [&](StageWork& stage) -> Status {
    for (const auto& match : matches) {
      ASSIGN_OR_RETURN(UniqueFd content, OpenContent(fetch, match.file->sha256()));
      RETURN_IF_ERROR(stage.Put(FileOf(match, step), std::move(content)));
    }
    for (const auto& text : step.files) {
      ASSIGN_OR_RETURN(UniqueFd content, TextFile(text.content));
      StageFile file;
      file.set_path(step.destination);
      file.set_name(text.name);
      file.set_mode(0644);
      RETURN_IF_ERROR(stage.Put(std::move(file), std::move(content)));
    }
    return OkStatus();
  };
  return tool.Run(trees, {step.chown, step.chmod}, cancel, work).status();
}

Status CopyFromImage(StageTool& tool, const StageTrees& trees, const image::Step& step, CancelToken* cancel) {
  if (trees.source_ids.empty()) return NotFound(step.from + " holds no files");
  auto work = [&](StageWork& stage) {
    StageCopy copy;
    for (const auto& pattern : step.sources) copy.add_patterns(pattern);
    copy.set_destination(step.destination);
    copy.set_source_name(step.from);
    return stage.Copy(std::move(copy));
  };
  return tool.Run(trees, {step.chown, step.chmod}, cancel, work).status();
}

Status MakeWorkdir(StageTool& tool, const StageTrees& trees, const image::Step& step, CancelToken* cancel) {
  auto work = [&](StageWork& stage) { return stage.MakeFolder(step.workdir); };
  return tool.Run(trees, {step.user, -1}, cancel, work).status();
}

Result<StageOwner> FindOwner(StageTool& tool, const std::vector<std::string>& layer_ids,
                             const std::string& text, CancelToken* cancel) {
  StageOwner owner;
  auto work = [&](StageWork& stage) -> Status {
    ASSIGN_OR_RETURN(owner, stage.FindOwner(text));
    return OkStatus();
  };
  RETURN_IF_ERROR(tool.Run({layer_ids, "", {}}, {}, cancel, work).status());
  return owner;
}

Result<std::string> FindLibc(StageTool& tool, const std::vector<std::string>& layer_ids,
                             CancelToken* cancel) {
  std::string version;
  if (layer_ids.empty()) return version;
  auto work = [&](StageWork& stage) -> Status {
    ASSIGN_OR_RETURN(version, stage.FindLibc());
    return OkStatus();
  };
  RETURN_IF_ERROR(tool.Run({layer_ids, "", {}}, {}, cancel, work).status());
  return version;
}

}  // namespace lydian::build
