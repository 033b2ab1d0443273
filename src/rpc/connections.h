// The connections of one server, from accept to close. Those over TCP of which no call was authenticated yet
// are strangers, and those of HTTP/1.1 are while no exchange of theirs runs: they may be so for a while only,
// so many of one address, and go first when there are too many in all. So whoever has a token gets in,
// however many come without.
//
// Thread-safety: all methods. Ownership: it owns the gRPC connections; a socket that waits elsewhere is only
// known by its number, from Admit or Parked to Add, Begun or Dropped. Private to the module.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "rpc/connection.h"

namespace lydian::rpc {

// Who is at the other end, as a key: an address without its port, of IPv6 the network, as one host has all of
// it.
std::string PeerOf(int fd);
inline constexpr char kUnixPeer = 'u';
inline bool IsThisHost(const std::string& peer) { return peer.starts_with("4\x7F"); }

class Connections : public std::enable_shared_from_this<Connections> {
 public:
  struct Limits {
    size_t most = 0;              // in all
    size_t most_of_stranger = 0;  // of one address
    Millis stranger_for = Millis(0);
  };
  explicit Connections(Limits limits) : limits_(limits) {}

  // A socket that was accepted; `tcp`: as a stranger. False when there are too many.
  bool Admit(int fd, bool tcp);
  void Begun(int fd);    // its exchange runs, by whoever says Parked or Closed: it is no stranger meanwhile
  void Parked(int fd);   // a stranger again, from now
  void Dropped(int fd);  // about to be closed while it waited
  void Closed();         // one that had begun
  // Makes a connection of `fd`. `make` is run under the lock: the connection may end before it returns.
  void Add(int fd, const std::function<std::shared_ptr<Connection>()>& make);
  void Authenticated(const Connection* connection);
  void Remove(const Connection* connection);
  std::vector<std::shared_ptr<Connection>> all() const;

 private:
  struct Stranger {
    std::string peer;
    SteadyTime accepted;
    int fd = -1;  // while it waits
    std::weak_ptr<Connection> connection;
  };
  struct Open {
    std::shared_ptr<Connection> connection;
    uint64_t number = 0;  // in strangers_, perhaps no more
    bool counted = true;
  };

  void MakeRoomLocked(const std::string& peer);
  void WelcomeLocked(int fd, const std::string& peer);
  void ForgetLocked(uint64_t number);
  void TurnOutLocked(uint64_t number, const char* why);
  void WatchLocked();
  void TurnOutLate();

  const Limits limits_;
  mutable std::mutex mutex_;  // guards all below
  size_t count_ = 0;          // without those that were turned out and have not noticed yet
  uint64_t next_ = 1;
  std::map<uint64_t, Stranger> strangers_;  // the oldest first
  std::map<std::string, std::set<uint64_t>> by_peer_;
  std::unordered_map<int, uint64_t> waiting_;  // numbers of strangers, by socket; 0: was turned out
  std::map<const Connection*, Open> open_;
  bool watching_ = false;  // the timer is set
};

}  // namespace lydian::rpc
