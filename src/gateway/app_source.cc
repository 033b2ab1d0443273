#include "gateway/app_source.h"

#include <future>
#include <memory>

namespace lydian::gateway {
namespace {

constexpr size_t kLogLines = 1000;  // on a page
constexpr auto kPatience = std::chrono::seconds(5);

// Asks `start` with a callback and waits for it. UNAVAILABLE when control doesn't answer, since it stops.
template <typename T>
Result<T> Await(const std::function<void(std::function<void(T)>)>& start) {
  auto promise = std::make_shared<std::promise<T>>();
  std::future<T> answer = promise->get_future();
  start([promise](T value) { promise->set_value(std::move(value)); });
  if (answer.wait_for(kPatience) != std::future_status::ready)
    return Unavailable("control did not answer in time");
  try {
    return answer.get();
  } catch (const std::future_error&) {
    return Unavailable("control is stopping");
  }
}

struct Told {
  control::App app;
  std::vector<control::Member> members;
};

Result<Told> Tell(control::Objects& objects, const std::string& app_id) {
  ASSIGN_OR_RETURN(control::App app, objects.apps().ById(app_id));
  ASSIGN_OR_RETURN(auto members, objects.functions().Members(app.id, app.published));
  return Told{std::move(app), std::move(members)};
}

// The last lines of the app's log: the page is asked for again every few seconds.
Status ReadLogs(control::LogStore& logs, const std::string& app_id, AppPage* page) {
  std::shared_ptr<void> asked;  // letting go of it takes the question back
  ASSIGN_OR_RETURN(Result<control::LogStore::Page> read,
                   (Await<Result<control::LogStore::Page>>(
                       [&](std::function<void(Result<control::LogStore::Page>)> reply) {
                         asked = logs.ReadNewest(app_id, kLogLines + 1, std::move(reply));
                       })));
  if (read.status().code() == Code::kNotFound) return OkStatus();  // nothing was written yet
  RETURN_IF_ERROR(read.status());
  page->logs_cut = !read->records.empty() && read->records.front().seq > 1;
  for (control::LogRecord& record : read->records) {
    if (record.file_descriptor == 0 || record.data.empty()) continue;
    page->logs.push_back({static_cast<double>(record.unix_nanos) / 1e9, record.task_id,
                          std::move(record.data), record.file_descriptor == 2});
  }
  return OkStatus();
}

}  // namespace

Result<AppPage> AppSource::App(std::string_view app_id) {
  const std::string id(app_id);
  ASSIGN_OR_RETURN(Result<Told> told, (Await<Result<Told>>([&](std::function<void(Result<Told>)> reply) {
                     objects_->strand().Post(
                         [objects = objects_, id, reply = std::move(reply)] { reply(Tell(*objects, id)); });
                   })));
  RETURN_IF_ERROR(told.status());
  const control::App& app = told->app;
  AppPage page;
  page.id = app.id;
  page.name = app.title();
  page.environment = app.environment;
  page.state = control::AppStateName(app.state);
  if (!app.stop_reason.empty() && !app.alive()) page.state += ": " + app.stop_reason;
  page.created_at = app.created_at;
  page.stopped_at = app.stopped_at;
  page.living = app.alive();
  ASSIGN_OR_RETURN(
      auto tasks,
      (Await<std::vector<control::TaskView>>([&](std::function<void(std::vector<control::TaskView>)> reply) {
        engine_->Tasks(std::move(reply));
      })));
  for (const control::TaskView& task : tasks) {
    if (task.app_id != app.id) continue;
    page.tasks.push_back({task.task_id, task.function_name, task.state, task.started_at, task.finished_at});
  }
  for (const control::Member& member : told->members) {
    if (!member.id.starts_with("fu-")) continue;
    ASSIGN_OR_RETURN(auto stats,
                     (Await<control::FunctionStats>([&](std::function<void(control::FunctionStats)> reply) {
                       engine_->Stats(member.id, std::move(reply));
                     })));
    page.functions.push_back({member.tag, stats.queued, stats.running, stats.tasks});
  }
  RETURN_IF_ERROR(ReadLogs(*logs_, app.id, &page));
  return page;
}

}  // namespace lydian::gateway
