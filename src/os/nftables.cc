#include "os/nftables.h"

#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <nftables/libnftables.h>
#include <sys/socket.h>

#include <cstring>
#include <string_view>

namespace lydian::os {

void Nftables::Free::operator()(nft_ctx* context) const { ::nft_ctx_free(context); }

namespace {

// In every message about tables and what is in them, attribute 1 is the table's name.
std::string_view TableOf(const nlmsghdr* message) {
  static_assert(NFTA_TABLE_NAME == 1 && NFTA_CHAIN_TABLE == 1 && NFTA_RULE_TABLE == 1 &&
                NFTA_SET_TABLE == 1 && NFTA_SET_ELEM_LIST_TABLE == 1);
  const char* at = static_cast<const char*>(NLMSG_DATA(message)) + NLMSG_ALIGN(sizeof(nfgenmsg));
  const char* end = reinterpret_cast<const char*>(message) + message->nlmsg_len;
  while (at + sizeof(nlattr) <= end) {
    nlattr attribute;
    std::memcpy(&attribute, at, sizeof attribute);
    if (attribute.nla_len < sizeof attribute || at + attribute.nla_len > end) break;
    if ((attribute.nla_type & NLA_TYPE_MASK) == NFTA_TABLE_NAME) {
      const std::string_view value(at + sizeof attribute, attribute.nla_len - sizeof attribute);
      return value.substr(0, value.find('\0'));
    }
    at += NLA_ALIGN(attribute.nla_len);
  }
  return {};
}

bool Changes(const nlmsghdr* message) {
  if (NFNL_SUBSYS_ID(message->nlmsg_type) != NFNL_SUBSYS_NFTABLES) return false;
  switch (NFNL_MSG_TYPE(message->nlmsg_type)) {
    case NFT_MSG_NEWTABLE:
    case NFT_MSG_DELTABLE:
    case NFT_MSG_NEWCHAIN:
    case NFT_MSG_DELCHAIN:
    case NFT_MSG_NEWRULE:
    case NFT_MSG_DELRULE:
    case NFT_MSG_DELSET:
    case NFT_MSG_DELSETELEM:
      return true;
    default:
      return false;
  }
}

}  // namespace

Result<TableWatch> TableWatch::Open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER));
  if (!fd.valid()) return ErrnoStatus("opening a socket for events of the firewall");
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  const int group = NFNLGRP_NFTABLES;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0) {
    return ErrnoStatus("watching the firewall");
  }
  return TableWatch(std::move(fd));
}

bool TableWatch::Changed(const std::string& table) {
  bool changed = false;
  alignas(nlmsghdr) char buffer[16384];
  while (true) {
    ssize_t n = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ENOBUFS) {
      changed = true;
      continue;
    }
    if (n <= 0) return changed;
    auto left = static_cast<uint32_t>(n);
    for (auto* part = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(part, left);
         part = NLMSG_NEXT(part, left)) {
      if (Changes(part) && TableOf(part) == table) changed = true;
    }
  }
}

Result<Nftables> Nftables::Open() {
  nft_ctx* context = ::nft_ctx_new(NFT_CTX_DEFAULT);
  if (context == nullptr) return Internal("no nftables context");
  ::nft_ctx_buffer_output(context);
  ::nft_ctx_buffer_error(context);
  return Nftables(context);
}

Result<std::string> Nftables::Run(const std::string& commands) {
  int failed = ::nft_run_cmd_from_buffer(context_.get(), commands.c_str());
  const char* error = ::nft_ctx_get_error_buffer(context_.get());
  const char* output = ::nft_ctx_get_output_buffer(context_.get());
  if (failed != 0)
    return FailedPrecondition(std::string("nftables: ") + (error != nullptr ? error : "failed"));
  return std::string(output != nullptr ? output : "");
}

}  // namespace lydian::os
