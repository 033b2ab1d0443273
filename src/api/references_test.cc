// Which references deploys and stops leave, as the client's calls make them.
#include <modal_proto/api.pb.h>

#include "api/definitions.h"
#include "api/testing.h"
#include "base/ids.h"
#include "control/state_schema.h"

namespace lydian::api {
namespace {

namespace pb = modal::client;

class ReferencesOfAppsTest : public ApiTest {
 protected:
  std::set<std::string> References(const std::string& where) {
    std::set<std::string> found;
    auto db = store::Database::Open(dir_ + "/state.db", control::StateMigrations());
    EXPECT_TRUE(db.ok()) << db.status();
    Status read =
        (*db)->ForEach("SELECT kind, target FROM reference WHERE " + where, {}, [&](store::Row& row) {
          found.insert(row.Text(0) + " " + row.Text(1));
          return OkStatus();
        });
    EXPECT_TRUE(read.ok()) << read;
    return found;
  }
  // A definition that names an image and a mount, active at once.
  std::string Define(const std::string& function_id, const std::string& image, const std::string& mount) {
    pb::Function function;
    function.set_image_id(image);
    function.add_mount_ids(mount);
    control::Definition definition;
    definition.id = NewId("de");
    definition.function = function.SerializeAsString();
    definition.references = ReferencesOf(function);
    auto defined =
        OnStrand([&] { return objects_->functions().Define(function_id, definition, false, false); });
    EXPECT_TRUE(defined.ok()) << defined.status();
    return definition.id;
  }
};

TEST_F(ReferencesOfAppsTest, ADeployReplacesWhatTheLastOneNeededAndAStopEndsIt) {
  pb::AppCreateRequest request;
  request.set_description("shop");
  request.set_app_state(pb::APP_STATE_INITIALIZING);
  auto created = Ask<pb::AppCreateResponse>("AppCreate", request);
  ASSERT_TRUE(created.ok()) << created.status();
  auto function = OnStrand([&] { return objects_->functions().Precreate(created->app_id(), "f", "", ""); });
  ASSERT_TRUE(function.ok()) << function.status();
  auto publish = [&](const std::string& definition) {
    auto published = OnStrand([&]() -> Result<control::App> {
      ASSIGN_OR_RETURN(auto app, objects_->apps().ById(created->app_id()));
      control::Apps::Publication publication;
      publication.state = control::AppState::kDeployed;
      publication.name = "shop";
      publication.members = {{"f", function->id}};
      publication.definitions = {{function->id, definition}};
      return objects_->apps().Publish(app, publication);
    });
    ASSERT_TRUE(published.ok()) << published.status();
  };
  const std::string first = Define(function->id, "im-1", "mo-1");
  publish(first);
  const std::string second = Define(function->id, "im-2", "mo-2");
  // Not published yet: tasks that start now are of the first.
  EXPECT_EQ(References("kind IN ('image', 'mount')"),
            (std::set<std::string>{"image im-1", "mount mo-1", "image im-2", "mount mo-2"}));
  publish(second);
  EXPECT_EQ(References("1"), (std::set<std::string>{"definition " + second, "image im-2", "mount mo-2"}));
  auto bound = OnStrand([&] {
    return objects_->functions().Bind(*function, "params", "options", {{control::RefKind::kMount, "mo-3"}});
  });
  ASSERT_TRUE(bound.ok()) << bound.status();
  EXPECT_EQ(References("kind = 'mount'"), (std::set<std::string>{"mount mo-2", "mount mo-3"}));
  std::promise<void> stopped;
  Status stopping = OnStrand([&]() -> Status {
    ASSIGN_OR_RETURN(auto app, objects_->apps().ById(created->app_id()));
    return objects_->apps().Stop(app, "enough", [&] { stopped.set_value(); });
  });
  ASSERT_TRUE(stopping.ok()) << stopping;
  stopped.get_future().wait();
  EXPECT_EQ(References("1"), std::set<std::string>());
}

}  // namespace
}  // namespace lydian::api
