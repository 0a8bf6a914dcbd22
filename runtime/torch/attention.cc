#include "attention.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "result.h"

namespace tessera_torch {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A view for the library. Shapes are judged by it; here is what it cannot see.
tessera_tensor View(const char* name, const at::Tensor& tensor) {
  const auto reject = [name](const std::string& what) { throw std::invalid_argument(std::string(name) + what); };
  if (!tensor.device().is_cpu()) {
    reject(" is on " + tensor.device().str() + "; this release computes in host memory: move it with .cpu()");
  }
  if (tensor.layout() != at::kStrided) reject(" is not a strided tensor");
  if (tensor.dim() != 3) {
    reject(" has " + std::to_string(tensor.dim()) + " dimensions; it must be [rows, heads, width]");
  }
  tessera_tensor view = {};
  view.data = tensor.data_ptr();
  view.dtype = ToDType(name, tensor.scalar_type());
  for (int axis = 0; axis < 3; ++axis) {
    view.shape[axis] = tensor.size(axis);
    view.strides[axis] = tensor.stride(axis);
  }
  if (tensor.size(2) > 1 && tensor.stride(2) != 1) {
    reject(" has stride " + std::to_string(tensor.stride(2)) +
           " along its width; the numbers of a head must be neighbours: call .contiguous()");
  }
  view.strides[2] = 1;
  return view;
}

// Log-sum-exps are [rows, heads].
tessera_tensor LseView(const at::Tensor& lse) {
  return View("lse", lse.unsqueeze(2));
}

const float* Vector(const char* name, const at::Tensor& tensor, bool needed, int heads, at::Tensor* kept) {
  if (!tensor.defined()) {
    if (needed) throw std::invalid_argument(std::string(name) + " must be given: the plan's problem has them");
    return nullptr;
  }
  if (!needed) throw std::invalid_argument(std::string(name) + " are given, and the plan's problem has none");
  if (!tensor.device().is_cpu() || tensor.scalar_type() != at::kFloat || tensor.dim() != 1 || tensor.size(0) != heads) {
    throw std::invalid_argument(std::string(name) + " must be a float32 tensor [" + std::to_string(heads) +
                                "] in host memory");
  }
  *kept = tensor.detach().contiguous();
  return kept->data_ptr<float>();
}

struct Vectors {
  Vectors(const Problem& problem, const at::Tensor& given_slopes, const at::Tensor& given_sinks)
      : alibi_slopes(Vector("alibi_slopes", given_slopes, problem.alibi, problem.query_heads, &slopes)),
        sinks(Vector("sinks", given_sinks, problem.sink, problem.query_heads, &sink)) {}
  at::Tensor slopes, sink;
  const float* alibi_slopes;
  const float* sinks;
};

struct Operator : torch::autograd::Function<Operator> {
  static variable_list forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const at::Tensor& alibi_slopes, const at::Tensor& sinks,
                               const std::shared_ptr<Attention>& attention) {
    const Problem& problem = attention->plan().problem();
    const tessera_tensor q = View("query", query), k = View("key", key), v = View("value", value);
    const Vectors vectors(problem, Present(alibi_slopes), Present(sinks));
    const int64_t rows = query.size(0);
    at::Tensor output = at::empty({rows, problem.query_heads, problem.v_width}, query.options());
    at::Tensor lse = at::empty({rows, problem.query_heads}, query.options().dtype(LseType(problem.dtype)));
    const tessera_tensor out = View("output", output), lse_view = LseView(lse);
    tessera_forward_args args = TESSERA_INIT(tessera_forward_args);
    args.query = &q;
    args.key = &k;
    args.value = &v;
    args.output = &out;
    args.lse = &lse_view;
    args.alibi_slopes = vectors.alibi_slopes;
    args.sinks = vectors.sinks;
    attention->Forward(args);
    context->save_for_backward({query, key, value, output, lse, vectors.slopes, vectors.sink});
    context->saved_data["attention"] = at::IValue::make_capsule(c10::make_intrusive<Held>(attention));
    context->mark_non_differentiable({lse});
    return {output, lse};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    if (at::GradMode::is_enabled()) {
      throw std::runtime_error("attention cannot be differentiated twice (create_graph=True)");
    }
    const auto held = context->saved_data["attention"].toCapsule();
    const std::shared_ptr<Attention>& attention = static_cast<Held&>(*held).attention;
    const Problem& problem = attention->plan().problem();
    const variable_list saved = context->get_saved_variables();
    at::Tensor incoming = gradients[0];
    if (incoming.size(2) > 1 && incoming.stride(2) != 1) incoming = incoming.contiguous();  // of sum(): all strides 0
    at::Tensor query_gradient = at::empty(saved[0].sizes(), saved[0].options());
    at::Tensor key_gradient = at::empty(saved[1].sizes(), saved[1].options());
    at::Tensor value_gradient = at::empty(saved[2].sizes(), saved[2].options());
    at::Tensor sink_gradient;
    const Vectors vectors(problem, saved[5], saved[6]);
    const tessera_tensor q = View("query", saved[0]), k = View("key", saved[1]), v = View("value", saved[2]);
    const tessera_tensor out = View("output", saved[3]), lse = LseView(saved[4]);
    const tessera_tensor dout = View("output_gradient", incoming), dq = View("query_gradient", query_gradient);
    const tessera_tensor dk = View("key_gradient", key_gradient), dv = View("value_gradient", value_gradient);
    tessera_backward_args args = TESSERA_INIT(tessera_backward_args);
    args.query = &q;
    args.key = &k;
    args.value = &v;
    args.output = &out;
    args.lse = &lse;
    args.output_gradient = &dout;
    args.query_gradient = &dq;
    args.key_gradient = &dk;
    args.value_gradient = &dv;
    args.alibi_slopes = vectors.alibi_slopes;
    args.sinks = vectors.sinks;
    if (problem.sink) {
      sink_gradient = at::zeros({problem.query_heads}, at::kFloat);
      args.sink_gradient = sink_gradient.data_ptr<float>();
    }
    attention->Backward(args);
    // Every rank has the whole sum. Parameters are replicated and their gradients summed over ranks, so one rank gives
    // it.
    if (problem.sink && attention->rank() != 0) sink_gradient.zero_();
    return {query_gradient, key_gradient, value_gradient, at::Tensor(), sink_gradient, at::Tensor()};
  }

  // Not every release of PyTorch takes undefined tensors as inputs of a function: an absent vector is an empty one.
  static at::Tensor Present(const at::Tensor& tensor) { return tensor.numel() > 0 ? tensor : at::Tensor(); }
  static at::Tensor OrEmpty(const at::Tensor& tensor) { return tensor.defined() ? tensor : at::empty({0}); }

  struct Held : torch::CustomClassHolder {
    explicit Held(std::shared_ptr<Attention> held_attention) : attention(std::move(held_attention)) {}
    std::shared_ptr<Attention> attention;
  };
};

bool NeedsGradient(const at::Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad();
}

}  // namespace

std::shared_ptr<Attention> Attention::Create(std::shared_ptr<Communicator> comm, std::shared_ptr<Plan> plan,
                                             const AttentionOptions& options) {
  std::shared_ptr<Attention> attention(new Attention);
  tessera_attention_options given = TESSERA_INIT(tessera_attention_options);
  given.threads = options.threads;
  given.backward = options.backward;
  given.kernel = options.kernel.empty() ? nullptr : options.kernel.c_str();
  Check(tessera_attention_create(comm->handle(), plan->handle(), &given, &attention->attention_));
  attention->comm_ = comm;
  attention->plan_ = std::move(plan);
  attention->backward_ = options.backward;
  comm->Add(attention);
  return attention;
}

std::pair<at::Tensor, at::Tensor> Attention::Apply(const at::Tensor& query, const at::Tensor& key,
                                                   const at::Tensor& value, const at::Tensor& alibi_slopes,
                                                   const at::Tensor& sinks) {
  static_cast<void>(handle());
  const bool records = at::GradMode::is_enabled() &&
                       (NeedsGradient(query) || NeedsGradient(key) || NeedsGradient(value) || NeedsGradient(sinks));
  if (records && !backward_) {
    throw std::invalid_argument("a tensor requires its gradient, and this attention was created with backward=False");
  }
  if (NeedsGradient(alibi_slopes)) throw std::invalid_argument("alibi_slopes have no gradient; detach them");
  const auto results =
      Operator::apply(query, key, value, Operator::OrEmpty(alibi_slopes), Operator::OrEmpty(sinks), shared_from_this());
  return {results[0], results[1]};
}

void Attention::Forward(const tessera_forward_args& args) {
  Check(tessera_attention_forward(handle(), &args));
}

void Attention::Backward(const tessera_backward_args& args) {
  Check(tessera_attention_backward(handle(), &args));
}

tessera_attention* Attention::handle() const {
  if (attention_ == nullptr) throw std::runtime_error("the attention is closed");
  return attention_;
}

std::string Attention::kernel() const {
  return tessera_attention_kernel(handle());
}

Stats Attention::stats() const {
  tessera_stats stats = TESSERA_INIT(tessera_stats);
  Check(tessera_attention_stats(handle(), &stats));
  return {stats.seconds,    stats.compute_seconds, stats.exposed_seconds,
          stats.bytes_sent, stats.bytes_received,  stats.slot_bytes};
}

void Attention::Close() {
  tessera_attention_destroy(attention_);
  attention_ = nullptr;
}

}  // namespace tessera_torch
