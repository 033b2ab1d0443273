#include "gateway/pages.h"

#include <cmath>
#include <ctime>

#include "base/log.h"
#include "gateway/answers.h"

namespace lydian::gateway {
namespace {

using http::EscapeHtml;

constexpr std::string_view kAppPrefix = "/app/";
constexpr std::string_view kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 "
    "1rem;color:#1d2129;background:#fff}"
    "h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #d9dde3;vertical-align:top}"
    "code,pre{font:13px/1.45 "
    "ui-monospace,monospace}pre{background:#f5f6f8;padding:1rem;overflow-x:auto;white-space:pre-wrap;"
    "overflow-wrap:anywhere}.e{color:#a8231d}.t{color:#68707c}.n{text-align:right}"
    "@media(prefers-color-scheme:dark){body{background:#15181c;color:#e4e7eb}pre{background:#1f2328}th,td{"
    "border-color:#363c44}"
    ".e{color:#ff8a80}.t{color:#9aa3ae}}";

std::string Page(std::string_view title, std::string_view body, bool renews = false) {
  std::string page = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>" +
                     EscapeHtml(title) + "</title>";
  page += "<meta name=\"viewport\" content=\"width=device-width\">";
  if (renews) page += "<meta http-equiv=\"refresh\" content=\"5\">";
  page.append("<style>")
      .append(kStyle)
      .append("</style></head><body>\n")
      .append(body)
      .append("</body></html>\n");
  return page;
}

std::string When(double unix_seconds) {
  if (!std::isfinite(unix_seconds) || unix_seconds <= 0 || unix_seconds > 1e11) return "";
  const time_t seconds = static_cast<time_t>(unix_seconds);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

std::string Cell(std::string_view text) { return "<td>" + EscapeHtml(text) + "</td>"; }
std::string Mono(std::string_view text) { return "<td><code>" + EscapeHtml(text) + "</code></td>"; }
std::string Count(uint64_t number) { return "<td class=\"n\">" + std::to_string(number) + "</td>"; }

void AppendFunctions(const AppPage& app, std::string& out) {
  if (app.functions.empty()) return;
  out +=
      "<h2>Functions</h2><table><tr><th>Function</th><th class=\"n\">Waiting</th><th "
      "class=\"n\">Running</th><th class=\"n\">Containers</th></tr>\n";
  for (const AppPage::Function& f : app.functions) {
    out += "<tr>" + Mono(f.name) + Count(f.waiting) + Count(f.running) + Count(f.containers) + "</tr>\n";
  }
  out += "</table>\n";
}

void AppendTasks(const AppPage& app, std::string& out) {
  out += "<h2>Tasks</h2>";
  if (app.tasks.empty()) {
    out += "<p>No container has been started.</p>\n";
    return;
  }
  out += "<table><tr><th>Task</th><th>Function</th><th>State</th><th>Started (UTC)</th><th>Ended</th></tr>\n";
  for (const AppPage::Task& t : app.tasks) {
    out += "<tr>" + Mono(t.id) + Mono(t.function) + Cell(t.state) + Cell(When(t.started_at)) +
           Cell(When(t.ended_at)) + "</tr>\n";
  }
  out += "</table>\n";
}

// Control characters would be invalid in HTML, and a browser guesses at bytes that are not UTF-8.
std::string Printable(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  for (unsigned char c : text) {
    if (c == '\r' || (c < 0x20 && c != '\t' && c != '\n') || c == 0x7F) continue;
    clean.push_back(static_cast<char>(c));
  }
  while (clean.ends_with('\n')) clean.pop_back();
  return EscapeHtml(clean);
}

void AppendLogs(const AppPage& app, std::string& out) {
  out += "<h2>Logs</h2>";
  if (app.logs.empty()) {
    out += "<p>Nothing has been printed.</p>\n";
    return;
  }
  if (app.logs_cut)
    out += "<p>The last lines; <code>modal app logs " + EscapeHtml(app.id) + "</code> has them all.</p>";
  out += "<pre>";
  for (const AppPage::LogLine& line : app.logs) {
    out += "<span class=\"t\">" + When(line.at) + " " + EscapeHtml(line.task_id) + "</span> ";
    out += line.is_error ? "<span class=\"e\">" + Printable(line.text) + "</span>\n"
                         : Printable(line.text) + "\n";
  }
  out += "</pre>\n";
}

bool IsLoopback(std::string_view peer) {
  return peer == "unix" || peer == "::1" || peer.starts_with("127.") || peer.starts_with("::ffff:127.");
}

}  // namespace

std::string RenderApp(const AppPage& app) {
  std::string body = "<h1>" + EscapeHtml(app.name.empty() ? app.id : app.name) + "</h1>\n<table>";
  body += "<tr><th>App</th>" + Mono(app.id) + "</tr><tr><th>State</th>" + Cell(app.state) + "</tr>";
  body += "<tr><th>Environment</th>" + Cell(app.environment) + "</tr><tr><th>Created (UTC)</th>" +
          Cell(When(app.created_at)) + "</tr>";
  if (app.stopped_at > 0) body += "<tr><th>Stopped</th>" + Cell(When(app.stopped_at)) + "</tr>";
  body += "</table>\n";
  AppendFunctions(app, body);
  AppendTasks(app, body);
  AppendLogs(app, body);
  return Page((app.name.empty() ? app.id : app.name) + " - Lydian", body, app.living);
}

http::Response Pages::Handle(http::Exchange& exchange) {
  const http::Request& request = exchange.request();
  if (request.method != "GET" && request.method != "HEAD") {
    http::Response response = TextAnswer(405, "only GET and HEAD\n");
    response.headers.emplace_back("Allow", "GET, HEAD");
    return response;
  }
  if (request.path.starts_with(kAppPrefix)) return App(request);
  if (request.path == "/healthz") return TextAnswer(200, "ok\n");
  if (request.path == "/metrics") {
    if (!IsLoopback(request.peer)) return TextAnswer(403, "metrics are for this machine alone\n");
    http::Response response = TextAnswer(200, metrics_ ? metrics_() : "");
    response.headers[0].second = "text/plain; version=0.0.4; charset=utf-8";
    return response;
  }
  if (request.path == "/") {
    return HtmlAnswer(200, Page("Lydian",
                                "<h1>Lydian</h1>\n<p>This is the API of a Lydian server, which runs Python "
                                "functions in containers on its "
                                "own machine. It is spoken by the <code>modal</code> client: <code>lydian "
                                "login</code> on this machine "
                                "writes a profile for it, then <code>modal run hello.py</code>. The client "
                                "prints the address of a "
                                "page for each app.</p>\n"));
  }
  return HtmlAnswer(404, Page("Not found", "<h1>Not found</h1>\n<p>There is no such page.</p>\n"));
}

http::Response Pages::App(const http::Request& request) {
  const std::string_view app_id = std::string_view(request.path).substr(kAppPrefix.size());
  http::Response unknown = HtmlAnswer(
      404,
      Page(
          "No such app",
          "<h1>No such app</h1>\n<p>There is no such app, or the key in this address is not its own.</p>\n"));
  if (source_ == nullptr || !signer_->PageKeyIs(app_id, request.param("key"))) return unknown;
  auto app = source_->App(app_id);
  if (app.ok()) return HtmlAnswer(200, RenderApp(*app));
  if (app.status().code() == Code::kNotFound) return unknown;
  LOG_WARN("an app's page can't be shown", {{"app_id", app_id}, {"error", app.status()}});
  return HtmlAnswer(503, Page("Unavailable", "<h1>Unavailable</h1>\n<p>The app's state could not be read: " +
                                                 EscapeHtml(app.status().message()) + "</p>\n"));
}

}  // namespace lydian::gateway
