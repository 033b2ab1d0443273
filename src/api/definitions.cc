#include "api/definitions.h"

#include <modal_proto/api.pb.h>

#include <algorithm>

#include "api/unbuilt.h"
#include "base/ids.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

Status CheckWebhook(const pb::WebhookConfig& config) {
  if (config.type() == pb::WEBHOOK_TYPE_UNSPECIFIED) return OkStatus();
  return NotBuilt(Feature::kWebEndpoints);
}

Status CheckResources(const pb::Resources& resources) {
  if (resources.gpu_config().count() > 0) {
    return NotBuilt(Feature::kGpus);
  }
  if (resources.rdma()) return NotBuilt(Feature::kRdma);
  if (resources.memory_mb_max() != 0 && resources.memory_mb_max() < resources.memory_mb()) {
    return InvalidArgument("memory: the limit is below the request");
  }
  if (resources.milli_cpu_max() != 0 && resources.milli_cpu_max() < resources.milli_cpu()) {
    return InvalidArgument("cpu: the limit is below the request");
  }
  return OkStatus();
}

// Each place of a container costs the worker some bytes of disk, whether it is used or not.
constexpr uint32_t kMostAtOnce = 10'000;

template <typename Definition>
Status CheckPlaces(const Definition& definition) {
  const std::pair<const char*, uint32_t> values[] = {
      {"max_concurrent_inputs (@modal.concurrent(max_inputs=))", definition.max_concurrent_inputs()},
      {"target_concurrent_inputs (@modal.concurrent(target_inputs=))", definition.target_concurrent_inputs()},
      {"batch_max_size (@modal.batched(max_batch_size=))", definition.batch_max_size()}};
  for (const auto& [name, value] : values) {
    if (value > kMostAtOnce) {
      return InvalidArgument(std::string(name) + " is " + std::to_string(value) + "; it may be " +
                             std::to_string(kMostAtOnce) + " at most");
    }
  }
  return OkStatus();
}

Status CheckParts(const pb::Function& function) {
  RETURN_IF_ERROR(CheckPlaces(function));
  RETURN_IF_ERROR(CheckWebhook(function.webhook_config()));
  for (const auto& [name, method] : function.method_definitions())
    RETURN_IF_ERROR(CheckWebhook(method.webhook_config()));
  RETURN_IF_ERROR(CheckResources(function.resources()));
  if (function.is_server() || function.has_http_config()) return NotBuilt(Feature::kServers);
  if (!function.proxy_id().empty()) return NotBuilt(Feature::kProxies);
  if (function.volume_mounts_size() > 0) return NotBuilt(Feature::kVolumes);
  if (function.cloud_bucket_mounts_size() > 0 || function.s3_mounts_size() > 0)
    return NotBuilt(Feature::kBuckets);
  if (function.shared_volume_mounts_size() > 0) return NotBuilt(Feature::kNetworkFileSystems);
  if (function.i6pn_enabled()) return NotBuilt(Feature::kPrivateNetwork);
  if (function._experimental_group_size() > 1 || function._experimental_fabric_size() > 1)
    return NotBuilt(Feature::kClusters);
  if (function.is_sessioned()) return NotBuilt(Feature::kSessions);
  if (function.block_network()) return NotBuilt(Feature::kNetworkRules);
  const auto access = function.network_access().network_access_type();
  if (access != pb::NetworkAccess::UNSPECIFIED && access != pb::NetworkAccess::OPEN)
    return NotBuilt(Feature::kNetworkRules);
  if (function.rate_limit().limit() > 0) return NotBuilt(Feature::kRateLimits);
  if (function.pty_info().enabled()) return NotBuilt(Feature::kShell);
  return OkStatus();
}

}  // namespace

Status CheckSupported(const pb::Function& function) {
  return CheckParts(function).With("function '" + function.function_name().substr(0, 200) + "'");
}

Status CheckSupported(const pb::FunctionOptions& options) {
  RETURN_IF_ERROR(CheckPlaces(options));
  RETURN_IF_ERROR(CheckResources(options.resources()));
  if (options.volume_mounts_size() > 0) return NotBuilt(Feature::kVolumes);
  if (options.cloud_bucket_mounts_size() > 0) return NotBuilt(Feature::kBuckets);
  if (options.has_pinned_app_version()) return NotBuilt(Feature::kAppHistory);
  return OkStatus();
}

pb::FunctionHandleMetadata HandleOf(const pb::FunctionPrecreateRequest& request) {
  pb::Function function;
  function.set_function_type(request.function_type());
  if (request.has_function_schema()) *function.mutable_function_schema() = request.function_schema();
  *function.mutable_supported_input_formats() = request.supported_input_formats();
  *function.mutable_supported_output_formats() = request.supported_output_formats();
  *function.mutable_method_definitions() = request.method_definitions();
  return HandleOf(function, request.function_name(), request.app_id(), "");
}

pb::FunctionHandleMetadata HandleOf(const pb::Function& function, const std::string& tag,
                                    const std::string& app_id, const std::string& definition_id) {
  pb::FunctionHandleMetadata handle;
  handle.set_function_name(tag);
  handle.set_function_type(function.function_type());
  handle.set_definition_id(definition_id);
  handle.set_app_id(app_id);
  if (function.has_function_schema()) *handle.mutable_function_schema() = function.function_schema();
  if (function.has_class_parameter_info())
    *handle.mutable_class_parameter_info() = function.class_parameter_info();
  *handle.mutable_supported_input_formats() = function.supported_input_formats();
  *handle.mutable_supported_output_formats() = function.supported_output_formats();
  for (const auto& [name, method] : function.method_definitions()) {
    pb::FunctionHandleMetadata& entry = (*handle.mutable_method_handle_metadata())[name];
    entry.set_function_name(method.function_name());
    entry.set_function_type(method.function_type());
    entry.set_is_method(true);
    entry.set_use_method_name(name);
    entry.set_definition_id(definition_id);
    entry.set_app_id(app_id);
    if (method.has_function_schema()) *entry.mutable_function_schema() = method.function_schema();
    *entry.mutable_supported_input_formats() = method.supported_input_formats();
    *entry.mutable_supported_output_formats() = method.supported_output_formats();
  }
  return handle;
}

pb::FunctionData DataOf(const pb::Function& function) {
  pb::FunctionData data;
  data.set_module_name(function.module_name());
  data.set_function_name(function.function_name());
  data.set_implementation_name(function.implementation_name());
  data.set_function_type(function.function_type());
  data.set_warm_pool_size(function.warm_pool_size());
  data.set_concurrency_limit(function.concurrency_limit());
  data.set_task_idle_timeout_secs(function.task_idle_timeout_secs());
  data.set__experimental_group_size(function._experimental_group_size());
  data.set__experimental_buffer_containers(function._experimental_buffer_containers());
  data.set_timeout_secs(function.timeout_secs());
  data.set_startup_timeout_secs(function.startup_timeout_secs());
  *data.mutable_method_definitions() = function.method_definitions();
  data.set_method_definitions_set(function.method_definitions_set());
  data.set_is_class(function.is_class());
  data.set_is_method(function.is_method());
  data.set_untrusted(function.untrusted());
  data.set_routing_region(function.routing_region());
  if (function.has_class_parameter_info())
    *data.mutable_class_parameter_info() = function.class_parameter_info();
  if (function.has_schedule()) *data.mutable_schedule() = function.schedule();
  if (function.has_autoscaler_settings())
    *data.mutable_autoscaler_settings() = function.autoscaler_settings();
  if (function.has_function_schema()) *data.mutable_function_schema() = function.function_schema();
  *data.mutable_experimental_options() = function.experimental_options();
  *data.mutable_supported_input_formats() = function.supported_input_formats();
  *data.mutable_supported_output_formats() = function.supported_output_formats();
  auto& ranked = *data.add_ranked_functions();
  *ranked.mutable_function() = function;
  // Up to 16 MiB each, and nobody reads them back.
  ranked.mutable_function()->clear_function_serialized();
  ranked.mutable_function()->clear_class_serialized();
  return data;
}

std::vector<control::Reference> ReferencesOf(const pb::Function& function) {
  using control::RefKind;
  std::vector<control::Reference> references;
  if (!function.image_id().empty()) references.push_back({RefKind::kImage, function.image_id()});
  for (const auto& id : function.mount_ids()) references.push_back({RefKind::kMount, id});
  for (const auto& id : function.secret_ids()) references.push_back({RefKind::kSecret, id});
  for (const auto& dependency : function.object_dependencies()) {
    const std::string_view prefix = IdPrefix(dependency.object_id());
    if (prefix == "mo") references.push_back({RefKind::kMount, dependency.object_id()});
    if (prefix == "im") references.push_back({RefKind::kImage, dependency.object_id()});
  }
  return references;
}

std::vector<control::Reference> ReferencesOf(const pb::FunctionOptions& options) {
  std::vector<control::Reference> references;
  for (const auto& id : options.mount_ids()) references.push_back({control::RefKind::kMount, id});
  for (const auto& id : options.secret_ids()) references.push_back({control::RefKind::kSecret, id});
  return references;
}

void ApplyOptions(const pb::FunctionOptions& options, pb::Function* function) {
  if (options.replace_secret_ids()) function->clear_secret_ids();
  function->mutable_secret_ids()->MergeFrom(options.secret_ids());
  function->mutable_mount_ids()->MergeFrom(options.mount_ids());
  if (options.has_resources()) *function->mutable_resources() = options.resources();
  if (options.has_retry_policy()) *function->mutable_retry_policy() = options.retry_policy();
  auto& scaler = *function->mutable_autoscaler_settings();
  if (options.has_concurrency_limit()) {
    function->set_concurrency_limit(options.concurrency_limit());
    scaler.set_max_containers(options.concurrency_limit());
  }
  if (options.has_warm_pool_size()) {
    function->set_warm_pool_size(options.warm_pool_size());
    scaler.set_min_containers(options.warm_pool_size());
  }
  if (options.has_buffer_containers()) {
    function->set__experimental_buffer_containers(options.buffer_containers());
    scaler.set_buffer_containers(options.buffer_containers());
  }
  if (options.has_task_idle_timeout_secs()) {
    function->set_task_idle_timeout_secs(options.task_idle_timeout_secs());
    scaler.set_scaledown_window(options.task_idle_timeout_secs());
  }
  if (options.has_timeout_secs()) function->set_timeout_secs(options.timeout_secs());
  if (options.has_max_concurrent_inputs())
    function->set_max_concurrent_inputs(options.max_concurrent_inputs());
  if (options.has_target_concurrent_inputs())
    function->set_target_concurrent_inputs(options.target_concurrent_inputs());
  if (options.has_batch_max_size()) function->set_batch_max_size(options.batch_max_size());
  if (options.has_batch_linger_ms()) function->set_batch_linger_ms(options.batch_linger_ms());
  if (options.has_scheduler_placement())
    *function->mutable_scheduler_placement() = options.scheduler_placement();
  if (options.has_cloud_provider_str()) function->set_cloud_provider_str(options.cloud_provider_str());
  if (options.has_routing_region()) function->set_routing_region(options.routing_region());
}

Result<pb::Function> Effective(const control::Function& function, const control::Definition& definition) {
  pb::Function effective;
  pb::FunctionOptions options;
  if (!effective.ParseFromString(definition.function) || !options.ParseFromString(function.options)) {
    return DataLoss("the definition of " + function.id + " is damaged");
  }
  if (!function.base_id.empty()) ApplyOptions(options, &effective);
  return effective;
}

TaskLimits LimitsOf(const pb::Function& definition) {
  const auto& resources = definition.resources();
  TaskLimits limits;
  limits.set_milli_cpu_request(resources.milli_cpu() != 0 ? resources.milli_cpu() : 125);
  limits.set_milli_cpu_limit(resources.milli_cpu_max());
  limits.set_memory_request_bytes(uint64_t{resources.memory_mb() != 0 ? resources.memory_mb() : 128} << 20);
  limits.set_memory_limit_bytes(uint64_t{resources.memory_mb_max()} << 20);
  limits.set_disk_bytes(uint64_t{resources.ephemeral_disk_mb()} << 20);
  limits.set_keep_thread_counts(resources.skip_num_threads_env_vars());
  return limits;
}

control::FunctionInfo InfoOf(const control::Function& function, const pb::Function& definition,
                             const std::string& environment) {
  control::FunctionInfo info;
  info.function_id = function.id;
  info.app_id = function.app_id;
  info.workspace_id = function.workspace_id;
  info.environment = environment;
  info.name = function.tag;
  info.base_id = function.base_id;
  uint32_t concurrent = definition.max_concurrent_inputs();
  info.batch_max_size = definition.batch_max_size();
  info.batch_linger_ms = definition.batch_linger_ms();
  info.slots = std::max<uint32_t>(1, concurrent != 0 ? concurrent : info.batch_max_size);
  uint32_t target = definition.target_concurrent_inputs();
  info.target_slots = target != 0 ? std::min(target, info.slots) : info.slots;
  if (definition.has_retry_policy()) {
    const auto& policy = definition.retry_policy();
    info.retry.retries = policy.retries();
    if (policy.backoff_coefficient() > 0) info.retry.backoff_coefficient = policy.backoff_coefficient();
    info.retry.initial_delay_ms = policy.initial_delay_ms();
    if (policy.max_delay_ms() != 0) info.retry.max_delay_ms = policy.max_delay_ms();
  }
  if (definition.timeout_secs() != 0) info.timeout_secs = definition.timeout_secs();
  info.startup_timeout_secs =
      definition.startup_timeout_secs() != 0 ? definition.startup_timeout_secs() : info.timeout_secs;
  const auto& scaler = definition.autoscaler_settings();
  info.min_containers = scaler.has_min_containers() ? scaler.min_containers() : definition.warm_pool_size();
  info.max_containers =
      scaler.has_max_containers() ? scaler.max_containers() : definition.concurrency_limit();
  info.buffer_containers = scaler.has_buffer_containers() ? scaler.buffer_containers()
                                                          : definition._experimental_buffer_containers();
  uint32_t window =
      scaler.has_scaledown_window() ? scaler.scaledown_window() : definition.task_idle_timeout_secs();
  if (window != 0) info.scaledown_window_secs = window;
  info.single_use = definition.single_use_containers() || definition.max_inputs() == 1;
  info.generator = definition.function_type() == pb::Function::FUNCTION_TYPE_GENERATOR;
  info.limits = LimitsOf(definition);
  return info;
}

}  // namespace lydian::api
