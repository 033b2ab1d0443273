// Questions from containers, and the host's resolv.conf.
#include "fuzz.h"
#include "worker/dns_relay.h"

FUZZ_TARGET(dns) {
  for (const std::string& server : lydian::worker::ParseResolvConf(input)) CHECK(!server.empty());
  const std::string answer = lydian::worker::ErrorAnswer(input, 2);
  if (answer.empty()) return;
  CHECK(answer.size() >= 12 && answer.size() <= input.size());
  CHECK(answer.substr(0, 2) == input.substr(0, 2));
  CHECK((answer[2] & 0x80) != 0 && (answer[3] & 0x0F) == 2);
  CHECK(lydian::worker::ErrorAnswer(answer, 2).empty());  // an answer is no question
}
