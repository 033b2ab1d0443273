#include "worker/dns_relay.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace lydian::worker {
namespace {
constexpr uint64_t kWake = 0, kUdp = 1, kTcp = 2, kLinks = 3;
constexpr size_t kHeader = 12;
constexpr int kServFail = 2;
constexpr size_t kMostUdp = 4096;
constexpr size_t kMostBuffered = 128 << 10;  // of a stream, each way
constexpr std::chrono::seconds kStreamIdle{10};

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

bool MakeAddress(const std::string& host, uint16_t port, Address* address) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return false;
  std::memcpy(&address->storage, found->ai_addr, found->ai_addrlen);
  address->length = found->ai_addrlen;
  freeaddrinfo(found);
  return true;
}

bool SameId(std::string_view question, std::string_view answer) {
  return answer.size() >= kHeader && answer.substr(0, 2) == question.substr(0, 2) && (answer[2] & 0x80) != 0;
}

std::string Framed(std::string_view message) {
  std::string framed;
  framed.push_back(static_cast<char>(message.size() >> 8 & 0xFF));
  framed.push_back(static_cast<char>(message.size() & 0xFF));
  return framed.append(message);
}

// The first whole message of a TCP stream's bytes, or nothing.
std::string_view FirstFrame(std::string_view data) {
  if (data.size() < 2) return {};
  const size_t length = static_cast<unsigned char>(data[0]) << 8 | static_cast<unsigned char>(data[1]);
  return data.size() < 2 + length ? std::string_view() : data.substr(2, length);
}
}  // namespace

std::vector<std::string> ParseResolvConf(std::string_view text) {
  std::vector<std::string> servers;
  while (!text.empty() && servers.size() < 3) {
    const size_t stop = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, stop);
    text.remove_prefix(std::min(stop + 1, text.size()));
    constexpr std::string_view kKey = "nameserver";
    if (!line.starts_with(kKey)) continue;
    line.remove_prefix(kKey.size());
    const size_t begin = line.find_first_not_of(" \t");
    if (begin == 0 || begin == std::string_view::npos) continue;
    const size_t end = std::min(line.find_first_of(" \t\r#;", begin), line.size());
    if (end > begin) servers.emplace_back(line.substr(begin, end - begin));
  }
  if (servers.empty()) servers.emplace_back("127.0.0.1");
  return servers;
}

std::string ErrorAnswer(std::string_view question, int code) {
  if (question.size() < kHeader || (question[2] & 0x80) != 0) return {};
  std::string answer(question);
  answer[2] = static_cast<char>((static_cast<unsigned char>(answer[2]) & 0x79) |
                                0x80);         // a response; opcode and RD kept
  answer[3] = static_cast<char>(0x80 | code);  // RA
  // Counts of answers, authorities, additionals: none (an OPT record that follows the question is cut off
  // with them).
  for (size_t i = 6; i < kHeader; ++i) answer[i] = 0;
  size_t at = kHeader;
  const int questions =
      static_cast<unsigned char>(question[4]) << 8 | static_cast<unsigned char>(question[5]);
  for (int i = 0; i < questions; ++i) {
    while (at < question.size() && question[at] != 0)
      at += static_cast<unsigned char>(question[at]) + size_t{1};
    at += 5;
    if (at > question.size()) return {};
  }
  answer.resize(at);
  return answer;
}

int Judge(std::string_view question) {
  constexpr int kFormErr = 1, kNotImp = 4, kRefused = 5;
  constexpr unsigned kIxfr = 251, kAxfr = 252, kAny = 255;
  auto byte = [&](size_t at) { return static_cast<unsigned char>(question[at]); };
  if (question.size() < kHeader || (byte(2) & 0x80) != 0) return -1;
  if ((byte(2) & 0x78) != 0) return kNotImp;  // UPDATE, NOTIFY, STATUS, ...
  if (byte(4) != 0 || byte(5) != 1) return kFormErr;
  // Answers and authorities belong in no question.
  for (size_t at = 6; at < 10; ++at) {
    if (byte(at) != 0) return kFormErr;
  }
  size_t at = kHeader;
  while (at < question.size() && byte(at) != 0) {
    if (byte(at) > 63) return kFormErr;  // compressed: there is nothing before it to point to
    at += byte(at) + size_t{1};
  }
  if (at + 5 > question.size() || at - kHeader > 255) return kFormErr;
  const unsigned type = static_cast<unsigned>(byte(at + 1)) << 8 | byte(at + 2);
  // What isn't about data: OPT, TSIG, transfers, mail boxes. ANY is a question, if an impolite one.
  if ((type >= 249 && type < kAny) || type == kIxfr || type == kAxfr || type == 41 || type == 0)
    return kRefused;
  return 0;
}

struct DnsRelay::Question {
  uint64_t id;
  uint32_t asker;  // the container's address
  std::string bytes;
  Address from;         // of a datagram
  uint64_t stream = 0;  // of a TCP client
  std::vector<std::string> servers;
  size_t server = 0;  // asked now
  UniqueFd upstream;
  std::string in, out;  // TCP
  SteadyTime deadline;
};

namespace {

uint32_t Ipv4Of(const sockaddr_storage& address) {
  sockaddr_in raw{};
  std::memcpy(&raw, &address, sizeof raw);
  return ntohl(raw.sin_addr.s_addr);
}

// Which of the items, ordered by age, has to go so that one more of `asker` has room; 0 if none has.
template <typename Items>
uint64_t Victim(const Items& items, uint32_t asker, size_t most, size_t most_each) {
  std::map<uint32_t, size_t> counts;
  for (const auto& [id, item] : items) ++counts[item->asker];
  uint32_t who = asker;
  if (counts[asker] < most_each) {
    if (items.size() < most) return 0;
    for (const auto& [other, count] : counts) {
      if (count > counts[who]) who = other;
    }
  }
  for (const auto& [id, item] : items) {
    if (item->asker == who) return id;
  }
  return items.empty() ? 0 : items.begin()->first;
}

}  // namespace

struct DnsRelay::Stream {
  uint64_t id;
  uint32_t asker;
  UniqueFd fd;
  std::string in, out;
  bool asked = false;
  SteadyTime deadline;
};

DnsRelay::DnsRelay(Options options) : options_(std::move(options)) {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  CHECK(epoll_.valid() && wake_.valid());
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWake}};
  CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "dns");
    Run();
  });
}

DnsRelay::~DnsRelay() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Post([] {});
  thread_.join();
}

void DnsRelay::Post(Task task) {
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
  }
  uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
}

void DnsRelay::Open() {
  Post([this] {
    if (options_.bridge.empty()) {
      if (Status status = Bind(); !status.ok()) LOG_WARN("containers have no DNS relay", {{"error", status}});
      return;
    }
    if (!links_.valid()) {
      links_.reset(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE));
      sockaddr_nl address{};
      address.nl_family = AF_NETLINK;
      address.nl_groups = RTMGRP_LINK;
      epoll_event event{.events = EPOLLIN, .data = {.u64 = kLinks}};
      if (!links_.valid() || bind(links_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
          epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, links_.get(), &event) != 0) {
        LOG_WARN("new network interfaces can't be watched", {{"error", ErrnoStatus("netlink")}});
      }
    }
    LookForBridge();
  });
}

void DnsRelay::LookForBridge() {
  // What the messages say doesn't matter (some may be lost): only whether the bridge is another than before.
  std::array<char, 16 << 10> thrown;
  while (links_.valid() && recv(links_.get(), thrown.data(), thrown.size(), 0) >= 0) {
  }
  const unsigned int index = if_nametoindex(options_.bridge.c_str());
  if (index == bound_index_) return;
  bound_index_ = 0;
  udp_.reset();
  tcp_.reset();
  if (index == 0) return;
  if (Status status = Bind(); !status.ok()) {
    LOG_WARN("containers have no DNS relay", {{"error", status}});
    return;
  }
  bound_index_ = index;
  LOG_INFO("relaying DNS", {{"bridge", options_.bridge}});
}

uint16_t DnsRelay::BoundPort() {
  std::promise<uint16_t> port;
  Post([&] {
    sockaddr_in address{};
    socklen_t length = sizeof address;
    const bool bound =
        udp_.valid() && getsockname(udp_.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0;
    port.set_value(bound ? ntohs(address.sin_port) : 0);
  });
  return port.get_future().get();
}

Status DnsRelay::Bind() {
  udp_.reset();
  tcp_.reset();
  Address address;
  if (!MakeAddress(options_.address, options_.port, &address))
    return InvalidArgument(options_.address + " is not an address");
  UniqueFd udp(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  UniqueFd tcp(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  for (const UniqueFd* fd : {&udp, &tcp}) {
    if (!fd->valid()) return ErrnoStatus("making a DNS socket");
    const int on = 1;
    setsockopt(fd->get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd->get(), IPPROTO_IP, IP_FREEBIND, &on,
               sizeof on);  // the bridge gets its addresses after its name
    if (options_.mark != 0 &&
        setsockopt(fd->get(), SOL_SOCKET, SO_MARK, &options_.mark, sizeof options_.mark) != 0) {
      return ErrnoStatus("marking answers");
    }
    // Two instances have the same address, each on its own bridge.
    if (!options_.bridge.empty() &&
        setsockopt(fd->get(), SOL_SOCKET, SO_BINDTODEVICE, options_.bridge.c_str(),
                   static_cast<socklen_t>(options_.bridge.size())) != 0) {
      return ErrnoStatus("binding to " + options_.bridge);
    }
    if (bind(fd->get(), reinterpret_cast<sockaddr*>(&address.storage), address.length) != 0) {
      return ErrnoStatus("binding to " + options_.address + ":" + std::to_string(options_.port));
    }
    if (options_.port == 0)
      getsockname(fd->get(), reinterpret_cast<sockaddr*>(&address.storage), &address.length);
  }
  if (listen(tcp.get(), 64) != 0) return ErrnoStatus("listening for DNS");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kUdp}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, udp.get(), &event) != 0)
    return ErrnoStatus("watching a DNS socket");
  event.data.u64 = kTcp;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, tcp.get(), &event) != 0)
    return ErrnoStatus("watching a DNS socket");
  udp_ = std::move(udp);
  tcp_ = std::move(tcp);
  return {};
}

void DnsRelay::ReadQuestions() {
  std::array<char, kMostUdp> buffer;
  for (int i = 0; i < 64; ++i) {
    Address from;
    from.length = sizeof from.storage;
    const ssize_t n = recvfrom(udp_.get(), buffer.data(), buffer.size(), 0,
                               reinterpret_cast<sockaddr*>(&from.storage), &from.length);
    if (n < 0) return;
    const std::string_view bytes(buffer.data(), static_cast<size_t>(n));
    if (const int code = Judge(bytes); code != 0) {
      const std::string answer = code < 0 ? "" : ErrorAnswer(bytes, code);
      if (!answer.empty()) {
        sendto(udp_.get(), answer.data(), answer.size(), MSG_NOSIGNAL,
               reinterpret_cast<sockaddr*>(&from.storage), from.length);
      }
      continue;
    }
    auto question = std::make_unique<Question>();
    question->bytes = bytes;
    question->from = from;
    question->asker = Ipv4Of(from.storage);
    Ask(Add(std::move(question)));
  }
}

DnsRelay::Question& DnsRelay::Add(std::unique_ptr<Question> question) {
  // Counted only where it can matter.
  if (questions_.size() >= std::min(options_.most_in_flight, options_.most_in_flight_each)) {
    const uint64_t victim =
        Victim(questions_, question->asker, options_.most_in_flight, options_.most_in_flight_each);
    if (victim != 0) {
      const uint64_t stream = questions_[victim]->stream;
      questions_.erase(victim);
      if (stream != 0) DropStream(stream);
    }
  }
  question->id = next_id_++;
  Question& added = *question;
  questions_[added.id] = std::move(question);
  return added;
}

void DnsRelay::DropStream(uint64_t id) {
  std::erase_if(questions_, [id](const auto& item) { return item.second->stream == id; });
  streams_.erase(id);
}

// Asks the resolver whose turn it is, or the next that can be asked; when none is left, the answer is
// SERVFAIL.
void DnsRelay::Ask(Question& question) {
  if (question.servers.empty())
    question.servers = ParseResolvConf(ReadFile(options_.resolv_conf, 1 << 20).value_or(""));
  const bool tcp = question.stream != 0;
  for (; question.server < question.servers.size(); ++question.server) {
    Address address;
    if (!MakeAddress(question.servers[question.server], options_.upstream_port, &address)) continue;
    // A socket of its own for each question: its port is one more thing that a forged answer has to guess.
    question.upstream.reset(socket(address.storage.ss_family,
                                   (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!question.upstream.valid()) continue;
    const int connected =
        connect(question.upstream.get(), reinterpret_cast<sockaddr*>(&address.storage), address.length);
    if (connected != 0 && errno != EINPROGRESS) continue;
    question.in.clear();
    question.out = tcp ? Framed(question.bytes) : "";
    if (!tcp && send(question.upstream.get(), question.bytes.data(), question.bytes.size(), MSG_NOSIGNAL) < 0)
      continue;
    epoll_event event{.events = tcp ? EPOLLIN | EPOLLOUT : EPOLLIN, .data = {.u64 = question.id}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, question.upstream.get(), &event) != 0) continue;
    question.deadline = std::chrono::steady_clock::now() + Millis(options_.timeout_ms);
    return;
  }
  Answer(question, ErrorAnswer(question.bytes, kServFail));
}

void DnsRelay::ReadAnswer(uint64_t id) {
  Question& question = *questions_[id];
  std::array<char, 65535> buffer;
  if (!question.out.empty()) {
    const ssize_t n = send(question.upstream.get(), question.out.data(), question.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
      ++question.server;
      return Ask(question);
    }
    if (n > 0) question.out.erase(0, static_cast<size_t>(n));
    if (question.out.empty()) {
      epoll_event event{.events = EPOLLIN, .data = {.u64 = id}};
      epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, question.upstream.get(), &event);
    }
  }
  const ssize_t n = recv(question.upstream.get(), buffer.data(), buffer.size(), 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {  // refused: nobody listens there
    ++question.server;
    return Ask(question);
  }
  std::string_view answer(buffer.data(), static_cast<size_t>(n));
  if (question.stream != 0) {
    question.in.append(answer);
    answer = FirstFrame(question.in);
    if (answer.empty()) return;
  }
  if (!SameId(question.bytes, answer)) return;  // not ours; the deadline goes on
  Answer(question, std::string(answer));
}

// The question is gone afterwards.
void DnsRelay::Answer(Question& question, std::string_view answer) {
  const uint64_t id = question.id;
  if (question.stream == 0) {
    if (!answer.empty() && udp_.valid()) {
      sendto(udp_.get(), answer.data(), answer.size(), MSG_NOSIGNAL,
             reinterpret_cast<sockaddr*>(&question.from.storage), question.from.length);
    }
  } else if (auto it = streams_.find(question.stream); it != streams_.end()) {
    it->second->asked = false;
    if (!answer.empty()) it->second->out += Framed(answer);
    answered_.push_back(question.stream);
  }
  questions_.erase(id);
}

void DnsRelay::AcceptStream() {
  Address from;
  from.length = sizeof from.storage;
  UniqueFd fd(accept4(tcp_.get(), reinterpret_cast<sockaddr*>(&from.storage), &from.length,
                      SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd.valid()) return;
  auto stream = std::make_unique<Stream>();
  stream->asker = Ipv4Of(from.storage);
  const uint64_t victim = Victim(streams_, stream->asker, options_.most_streams, options_.most_streams_each);
  if (victim != 0) DropStream(victim);
  stream->id = next_id_++;
  stream->fd = std::move(fd);
  stream->deadline = std::chrono::steady_clock::now() + kStreamIdle;
  epoll_event event{.events = EPOLLIN, .data = {.u64 = stream->id}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stream->fd.get(), &event) == 0)
    streams_[stream->id] = std::move(stream);
}

// Sets its descriptor free if it has ended.
void DnsRelay::ReadStream(Stream& stream) {
  std::array<char, 4096> buffer;
  const ssize_t n = recv(stream.fd.get(), buffer.data(), buffer.size(), 0);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return stream.fd.reset();
  if (n > 0) stream.in.append(buffer.data(), static_cast<size_t>(n));
  stream.deadline = std::chrono::steady_clock::now() + kStreamIdle;
}

void DnsRelay::ServeStream(uint64_t id, uint32_t events) {
  Stream& stream = *streams_[id];
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) ReadStream(stream);
  if (stream.fd.valid() && !stream.out.empty()) {
    const ssize_t n = send(stream.fd.get(), stream.out.data(), stream.out.size(), MSG_NOSIGNAL);
    if (n > 0) stream.out.erase(0, static_cast<size_t>(n));
    if (n < 0 && errno != EAGAIN) stream.fd.reset();
  }
  if (!stream.fd.valid()) return DropStream(id);
  // Who asks faster than it is answered, or doesn't read, is not read from.
  const uint32_t wanted =
      (stream.in.size() < kMostBuffered ? EPOLLIN : 0u) | (stream.out.empty() ? 0u : EPOLLOUT);
  epoll_event event{.events = wanted, .data = {.u64 = id}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, stream.fd.get(), &event);
  if (stream.asked || stream.out.size() > kMostBuffered) return;
  const std::string frame(FirstFrame(stream.in));
  if (frame.empty()) return;
  const int code = Judge(frame);
  if (code < 0) return DropStream(id);
  stream.in.erase(0, 2 + frame.size());
  if (code != 0) {
    const std::string answer = ErrorAnswer(frame, code);
    if (answer.empty()) return DropStream(id);
    stream.out += Framed(answer);
    return answered_.push_back(id);
  }
  auto question = std::make_unique<Question>();
  question->bytes = frame;
  question->stream = id;
  question->asker = stream.asker;
  stream.asked = true;
  Ask(Add(std::move(question)));
}

void DnsRelay::ServeAnswered() {
  // Those that are answered while this runs, by an error at once, get their turn after the others' events.
  std::vector<uint64_t> answered = std::exchange(answered_, {});
  for (uint64_t id : answered) {
    if (streams_.contains(id)) ServeStream(id, EPOLLOUT);
  }
}

int DnsRelay::Sweep() {
  const SteadyTime now = std::chrono::steady_clock::now();
  std::vector<uint64_t> late, idle;
  SteadyTime next = SteadyTime::max();
  for (const auto& [id, question] : questions_) {
    if (now >= question->deadline) {
      late.push_back(id);
    } else {
      next = std::min(next, question->deadline);
    }
  }
  for (const auto& [id, stream] : streams_) {
    if (now >= stream->deadline && !stream->asked) {
      idle.push_back(id);
    } else if (!stream->asked) {
      next = std::min(next, stream->deadline);
    }
  }
  for (uint64_t id : idle) DropStream(id);
  for (uint64_t id : late) {
    auto it = questions_.find(id);
    if (it == questions_.end()) continue;
    ++it->second->server;
    Ask(*it->second);
    next = now + Millis(1);  // it has a deadline of its own now, or is gone
  }
  if (next == SteadyTime::max()) return -1;
  return static_cast<int>(std::max<int64_t>(0, std::chrono::duration_cast<Millis>(next - now).count())) + 1;
}

void DnsRelay::Run() {
  std::array<epoll_event, 64> events;
  while (true) {
    const int wait_ms = Sweep();
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), answered_.empty() ? wait_ms : 0);
    ServeAnswered();
    for (int i = 0; i < count; ++i) {
      const uint64_t key = events[i].data.u64;
      if (key == kWake) {
        uint64_t ticks = 0;
        (void)!read(wake_.get(), &ticks, sizeof ticks);
      } else if (key == kLinks) {
        LookForBridge();
      } else if (key == kUdp) {
        if (udp_.valid()) ReadQuestions();
      } else if (key == kTcp) {
        if (tcp_.valid()) AcceptStream();
      } else if (questions_.contains(key)) {
        ReadAnswer(key);
      } else if (streams_.contains(key)) {
        ServeStream(key, events[i].events);
      }
    }
    std::deque<Task> tasks;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      tasks.swap(posted_);
    }
    for (Task& task : tasks) task();
  }
}

}  // namespace lydian::worker
