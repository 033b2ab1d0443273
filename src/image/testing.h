// Stands in for the store's own. For tests alone.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "image/layer_store.h"

namespace lydian::image {

// Passes on what a test doesn't override.
class PassingTransaction : public LayerTransaction {
 public:
  explicit PassingTransaction(std::unique_ptr<LayerTransaction> real) : real_(std::move(real)) {}
  const std::string& dir() const override { return real_->dir(); }
  Status Take(int writable, const std::function<Status()>& check) override {
    return real_->Take(writable, check);
  }
  Result<Tree> Upper() const override { return real_->Upper(); }
  Result<LayerInfo> Commit(const std::string& id, const std::string& note) override {
    return real_->Commit(id, note);
  }

 private:
  const std::unique_ptr<LayerTransaction> real_;
};

}  // namespace lydian::image
