// The Python module tessera.torch._C: handles as objects, keyword arguments, no policy.
#include <torch/extension.h>

#include "attention.h"
#include "communicator.h"
#include "plan.h"
#include "process_group.h"
#include "result.h"

namespace py = pybind11;

namespace tessera_torch {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

at::Tensor Given(const py::object& tensor) {
  return tensor.is_none() ? at::Tensor() : tensor.cast<at::Tensor>();
}

std::shared_ptr<Plan> MakePlan(int64_t query_tokens, int64_t key_tokens, int query_heads, int kv_heads, int qk_width,
                               int v_width, const py::object& dtype, int ranks, const std::string& strategy,
                               bool causal, const std::optional<std::vector<int64_t>>& documents,
                               const std::optional<std::vector<std::array<int64_t, 5>>>& slices,
                               const std::optional<std::pair<int64_t, int64_t>>& window, double scale, double soft_cap,
                               bool alibi, bool sink, int ranks_per_node) {
  Problem problem;
  if (!THPDtype_Check(dtype.ptr())) throw std::invalid_argument("dtype must be a torch.dtype");
  problem.dtype = reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type;
  problem.query_tokens = query_tokens;
  problem.key_tokens = key_tokens;
  problem.query_heads = query_heads;
  problem.kv_heads = kv_heads;
  problem.qk_width = qk_width;
  problem.v_width = v_width;
  problem.scale = scale;
  problem.soft_cap = soft_cap;
  problem.alibi = alibi;
  problem.sink = sink;
  problem.mask.causal = causal;
  problem.mask.has_documents = documents.has_value();
  problem.mask.has_slices = slices.has_value();
  if (documents) problem.mask.documents = *documents;
  if (slices) problem.mask.slices = *slices;
  problem.mask.window = window;
  return std::make_shared<Plan>(problem, ranks, strategy, ranks_per_node);
}

py::object DTypeOf(const Plan& plan) {
  return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(torch::getTHPDtype(plan.problem().dtype)));
}

std::shared_ptr<Communicator> FromProcessGroup(c10::intrusive_ptr<c10d::ProcessGroup> group, int64_t deadline_ms) {
  return MakeProcessGroup(std::move(group), deadline_ms);
}

}  // namespace
}  // namespace tessera_torch

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace tessera_torch;
  Check(tessera_check_version(TESSERA_API_VERSION));
  py::module_::import("torch.distributed");  // registers ProcessGroup

  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan")
      .def(py::init(&MakePlan), py::kw_only(), py::arg("query_tokens"), py::arg("key_tokens"), py::arg("query_heads"),
           py::arg("kv_heads"), py::arg("qk_width"), py::arg("v_width"), py::arg("dtype"), py::arg("ranks"),
           py::arg("strategy"), py::arg("causal"), py::arg("documents"), py::arg("slices"), py::arg("window"),
           py::arg("scale"), py::arg("soft_cap"), py::arg("alibi"), py::arg("sink"), py::arg("ranks_per_node"))
      .def_property_readonly("ranks", &Plan::ranks)
      .def_property_readonly("digest", &Plan::digest)
      .def_property_readonly("dtype", &DTypeOf)
      .def_property_readonly("query_tokens", [](const Plan& p) { return p.problem().query_tokens; })
      .def_property_readonly("key_tokens", [](const Plan& p) { return p.problem().key_tokens; })
      .def_property_readonly("query_heads", [](const Plan& p) { return p.problem().query_heads; })
      .def_property_readonly("kv_heads", [](const Plan& p) { return p.problem().kv_heads; })
      .def_property_readonly("qk_width", [](const Plan& p) { return p.problem().qk_width; })
      .def_property_readonly("v_width", [](const Plan& p) { return p.problem().v_width; })
      .def_property_readonly("sink", [](const Plan& p) { return p.problem().sink; })
      .def("local_query_tokens", [](const Plan& p, int rank) { return p.Tokens(rank, TESSERA_QUERIES); })
      .def("local_key_tokens", [](const Plan& p, int rank) { return p.Tokens(rank, TESSERA_KEYS); })
      .def("__repr__", [](const Plan& p) { return "<tessera plan: " + p.Describe() + ">"; });

  py::class_<Communicator, std::shared_ptr<Communicator>>(m, "Communicator")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def("all_reduce", &Communicator::AllReduce, Unlocked())
      .def("close", &Communicator::Close, Unlocked())
      .def("abort", &Communicator::Abort, Unlocked());
  m.def("make_self", &MakeSelf);
  m.def("make_mpi", &MakeMpi, py::arg("mpi_comm"), py::arg("deadline_ms"), Unlocked());
  m.def("finalize_mpi", &FinalizeMpi, Unlocked());
  m.def("make_process_group", &FromProcessGroup, py::arg("group"), py::arg("deadline_ms"), Unlocked());

  py::class_<Stats>(m, "Stats")
      .def_readonly("seconds", &Stats::seconds)
      .def_readonly("compute_seconds", &Stats::compute_seconds)
      .def_readonly("exposed_seconds", &Stats::exposed_seconds)
      .def_readonly("bytes_sent", &Stats::bytes_sent)
      .def_readonly("bytes_received", &Stats::bytes_received)
      .def_readonly("slot_bytes", &Stats::slot_bytes);

  py::class_<Attention, std::shared_ptr<Attention>>(m, "Attention")
      .def(py::init([](std::shared_ptr<Communicator> comm, std::shared_ptr<Plan> plan, int threads, bool backward,
                       const std::string& kernel) {
             return Attention::Create(std::move(comm), std::move(plan), {threads, backward, kernel});
           }),
           py::arg("comm"), py::arg("plan"), py::kw_only(), py::arg("threads"), py::arg("backward"), py::arg("kernel"),
           Unlocked())
      .def("apply",
           [](Attention& attention, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
              const py::object& alibi_slopes, const py::object& sinks) {
             const at::Tensor slopes = Given(alibi_slopes), logits = Given(sinks);
             const py::gil_scoped_release unlocked;
             return attention.Apply(query, key, value, slopes, logits);
           })
      .def_property_readonly("kernel", &Attention::kernel)
      .def_property_readonly("stats", &Attention::stats)
      .def("close", &Attention::Close, Unlocked());
}
