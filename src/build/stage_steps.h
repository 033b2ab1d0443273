// The steps of a stage that change files without running a command: COPY, ADD, WORKDIR; and what is asked
// about files of an image. Thread-safety: pure functions; block. Errors: texts for the user.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "build/context_match.h"
#include "build/stage_tool.h"
#include "image/stage.h"

namespace lydian::build {

Status CopyFromContext(StageTool& tool, const StageTrees& trees, const image::Step& step,
                       const std::vector<ContextMatch>& matches, const Fetcher& fetch, CancelToken* cancel);
// From `trees.source_ids`.
Status CopyFromImage(StageTool& tool, const StageTrees& trees, const image::Step& step, CancelToken* cancel);
// A step's working folder, which belongs to its user.
Status MakeWorkdir(StageTool& tool, const StageTrees& trees, const image::Step& step, CancelToken* cancel);

// "user[:group]" in the tables of an image.
Result<StageOwner> FindOwner(StageTool& tool, const std::vector<std::string>& layer_ids,
                             const std::string& text, CancelToken* cancel);
// "2.36", "musl", "" = none found.
Result<std::string> FindLibc(StageTool& tool, const std::vector<std::string>& layer_ids, CancelToken* cancel);

}  // namespace lydian::build
