// A card in software: a second device, "card", that stands for a GPU which this machine lacks. softcard.py says how it is used.
//
// Its memory is the host's, under a limit and with an exact count. Each operator is the CPU's own kernel on tensors that
// lie over the card's memory; what it makes becomes the card's. Nothing is copied, so a result has the CPU's very bits.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>
#include <mutex>

namespace {

constexpr auto CARD = c10::DeviceType::PrivateUse1;
const c10::Device HERE(CARD, 0);

// ---- Memory

// Counts bytes in blocks of 512, as CUDA's allocator hands them out.
struct Ledger {
  std::mutex lock;
  int64_t limit = INT64_MAX, used = 0, peak = 0, allocations = 0, refused_at = -1;

  static int64_t rounded(size_t bytes) { return (static_cast<int64_t>(bytes) + 511) / 512 * 512; }

  void take(size_t bytes) {
    if (bytes == 0) return;
    std::lock_guard<std::mutex> held(lock);
    bool refused = allocations++ == refused_at || used + rounded(bytes) > limit;
    TORCH_CHECK_WITH(OutOfMemoryError, !refused, "card out of memory. Tried to allocate ", bytes, " bytes at allocation ",
                     allocations - 1, "; ", used, " of ", limit, " bytes are in use.");
    used += rounded(bytes);
    peak = std::max(peak, used);
  }

  void give_back(size_t bytes) {
    std::lock_guard<std::mutex> held(lock);
    used -= rounded(bytes);
  }
};
Ledger ledger;

// A piece of the card's memory. What a kernel of the CPU has made stays in the storage that it came in.
struct Block {
  size_t bytes;
  c10::Storage made;
  void* own = nullptr;

  Block(size_t bytes, c10::Storage made) : bytes(bytes), made(std::move(made)) {
    ledger.take(bytes);
    if (bytes && !this->made) own = c10::alloc_cpu(bytes);
  }
  ~Block() {
    if (own) c10::free_cpu(own);
    ledger.give_back(bytes);
  }
  static void free(void* block) { delete static_cast<Block*>(block); }
  static c10::DataPtr data(size_t bytes, c10::Storage made = {}) {
    auto* block = new Block(bytes, std::move(made));
    void* data = block->made ? block->made.mutable_data() : block->own;
    return {data, block, &free, HERE};
  }
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { return Block::data(bytes); }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(CARD, &allocator)

void resize(const c10::Storage& storage, size_t bytes) {
  auto fresh = allocator.allocate(bytes);
  std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
  storage.set_data_ptr_noswap(std::move(fresh));
  storage.set_nbytes(bytes);
}

// ---- What PyTorch asks of a device. There is one, with one stream, and everything has happened when a call returns.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CARD; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(HERE); }
  c10::Stream getNewStream(c10::Device, int) const override { return getStream(HERE); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return getStream(HERE); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(HERE); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    static int happened;
    *event = &happened;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// The card's own random numbers, so that whoever seeds the CPU's alone is found out.
struct Generator final : at::CPUGeneratorImpl {
  Generator() { device_ = HERE; }
};
const at::Generator& default_generator() {
  static auto made = at::make_generator<Generator>();
  return made;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return HERE; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override { resize(storage, bytes); }
};

// ---- Operators

at::Tensor tensor_over(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) out._set_conj(true);
  if (like.is_neg()) out._set_neg(true);
  return out;
}

// A tensor of the CPU over the memory of one of the card's.
at::Tensor on_cpu(const at::Tensor& card) {
  c10::DataPtr data(const_cast<void*>(card.storage().data()), c10::Device(c10::kCPU));
  auto size = c10::Storage::use_byte_size_t();
  return tensor_over({size, card.storage().nbytes(), std::move(data), c10::GetAllocator(c10::kCPU), true},
                     c10::DispatchKey::CPU, card);
}
at::Tensor on_cpu_if(const at::Tensor& any) { return any.defined() && any.device() == HERE ? on_cpu(any) : any; }

// Makes what a kernel of the CPU has made the card's.
at::Tensor on_card(const at::Tensor& made) {
  if (!made.defined()) return made;
  auto storage = made.storage();
  auto bytes = storage.nbytes();
  return tensor_over({c10::Storage::use_byte_size_t(), bytes, Block::data(bytes, storage), &allocator, true},
                     c10::DispatchKey::PrivateUse1, made);
}

// One call of an operator: lends its tensors to the CPU, and takes them back with what became of them.
class Call {
 public:
  explicit Call(const c10::FunctionSchema& schema) : schema_(schema) {}

  c10::IValue lend(const c10::IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) return lend(value.toTensor(), argument);
    if (value.isTensorList() || value.isOptionalTensorList()) {
      auto many = value.toListRef();
      auto lent = c10::impl::GenericList(value.toList().elementType());
      for (const auto& one : many) lent.push_back(one.isTensor() ? lend(one.toTensor(), argument) : one);
      return lent;
    }
    if (value.isDevice()) return c10::Device(c10::kCPU);
    if (argument.name() == "generator") return lend_generator(value);
    return value;
  }

  c10::IValue take_back(const c10::IValue& value) {
    if (value.isTensor()) return take_back(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> back;
    for (const auto& one : value.toTensorVector()) back.push_back(take_back(one));
    return back;
  }

  // An operator may have given a tensor that was lent another shape and more memory.
  void settle() {
    for (auto& [card, cpu, data] : lent_) {
      if (cpu.storage().data() != data) {
        resize(card.storage(), cpu.storage().nbytes());
        std::memcpy(card.storage().mutable_data(), cpu.storage().data(), cpu.storage().nbytes());
      }
      if (cpu.sizes() != card.sizes() || cpu.strides() != card.strides()) {
        card.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
      }
    }
    if (twin_.defined()) generator_.set_state(twin_.get_state());
  }

 private:
  struct Lent {
    at::Tensor card, cpu;
    const void* data;
  };

  at::Tensor lend(const at::Tensor& given, const c10::Argument& argument) {
    if (!given.defined()) return given;
    if (given.device() != HERE) {
      // As on a GPU: a number may come from the CPU, and so may indices.
      TORCH_CHECK(given.dim() == 0 || argument.name() == "indices",
                  "Expected all tensors to be on the same device, but found at least two devices, card:0 and ",
                  given.device(), "! (when checking argument ", argument.name(), " of ", schema_.name(), ")");
      return given;
    }
    auto cpu = on_cpu(given);
    lent_.push_back({given, cpu, cpu.storage().data()});
    return cpu;
  }

  c10::IValue lend_generator(const c10::IValue& value) {
    generator_ = value.isNone() ? default_generator() : value.toGenerator();
    TORCH_CHECK(generator_.device() == HERE, "Expected a 'card' device type for generator but found ",
                generator_.device());
    twin_ = at::detail::createCPUGenerator();
    twin_.set_state(generator_.get_state());
    return twin_;
  }

  at::Tensor take_back(const at::Tensor& result) {
    if (!result.defined()) return result;
    for (const auto& [card, cpu, data] : lent_) {
      if (result.is_same(cpu)) return card;
      if (result.storage().is_alias_of(cpu.storage())) {
        return tensor_over(card.storage(), c10::DispatchKey::PrivateUse1, result);
      }
    }
    return on_card(result);
  }

  const c10::FunctionSchema& schema_;
  std::vector<Lent> lent_;
  at::Generator generator_, twin_;
};

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto& schema = op.schema();
  Call call(schema);
  auto first = stack->size() - schema.arguments().size();
  for (size_t i = first; i < stack->size(); i++) (*stack)[i] = call.lend((*stack)[i], schema.arguments()[i - first]);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.settle();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    (*stack)[i] = call.take_back((*stack)[i]);
  }
}

using Size = c10::IntArrayRef;
using SymSize = c10::SymIntArrayRef;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

at::Tensor empty(Size size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, KEYS, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(Size size, Size stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, KEYS, c10::dtype_or_default(type));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu_if(to).copy_(on_cpu_if(from));
  return to;
}

at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  impl->set_storage_offset(0);
  impl->set_sizes_contiguous({static_cast<int64_t>(source.nbytes() / self.itemsize())});
  return self;
}

at::Tensor& set_part(at::Tensor& self, at::Storage source, c10::SymInt offset, SymSize size, SymSize stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       SymSize stride, SymSize padding, SymSize dilation, bool transposed, SymSize output_padding,
                       c10::SymInt groups) {
  auto given = bias ? std::optional(on_cpu_if(*bias)) : std::nullopt;
  return on_card(at::convolution_symint(on_cpu(x), on_cpu(weight), given, stride, padding, dilation, transposed,
                                        output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, SymSize stride, SymSize padding,
    SymSize dilation, bool transposed, SymSize output_padding, c10::SymInt groups, std::array<bool, 3> wanted) {
  std::array<c10::SymInt, 1> bias{grad.sym_size(1)};
  auto [one, two, three] = at::convolution_backward_symint(on_cpu(grad), on_cpu(x), on_cpu(weight), bias, stride,
                                                           padding, dilation, transposed, output_padding, groups, wanted);
  return {on_card(one), on_card(two), on_card(three)};
}

// The CPU has this in one piece, too, but draws from its own generator.
std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor& x, double share, std::optional<bool>) {
  auto kept = at::empty_like(x, x.options().dtype(at::kBool)).bernoulli_(1 - share);
  return {(x * kept).mul_(1 / (1 - share)), kept};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_dropout", dropout);
  // For devices without a kernel PyTorch makes these of many operators.
  m.impl("native_layer_norm", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}
// A copy of a tensor that is yet to be conjugated or negated does that itself.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

// Where bitsandbytes has a kernel for a GPU, it has one for the CPU, and one made of many operators for others.
TORCH_LIBRARY_IMPL(bitsandbytes, PrivateUse1, m) {
  for (auto name : {"optimizer_update_32bit", "quantize_blockwise", "dequantize_blockwise", "quantize_4bit",
                    "dequantize_4bit"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

// Autocast, by the rules that CUDA has for it.
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
}  // namespace

namespace at::autocast {
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
  AT_FORALL_PROMOTE(WIDEST)
}
}  // namespace at::autocast

// Attention runs in one piece where it does so on the CPU.
namespace at::native {
int64_t attention_on_card(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                          double dropout, bool causal, std::optional<double> scale, bool grouped) {
  auto given = mask ? std::optional(on_cpu_if(*mask)) : std::nullopt;
  return at::_fused_sdp_choice(on_cpu(q), on_cpu(k), on_cpu(v), given, dropout, causal, scale, grouped);
}
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &attention_on_card)
}  // namespace at::native

// ---- What softcard.py uses

TORCH_LIBRARY(card, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("limit", [] { return ledger.limit; });
  m.def("set_limit", [](int64_t bytes) { ledger.limit = bytes; });
  m.def("used", [] { return ledger.used; });
  m.def("peak", [] { return ledger.peak; });
  m.def("reset_peak", [] { ledger.peak = ledger.used; });
  m.def("allocations", [] { return ledger.allocations; });
  m.def("refuse", [](int64_t n) { ledger.allocations = 0, ledger.refused_at = n; });
  m.def("seed", [](int64_t seed) { const_cast<at::Generator&>(default_generator()).set_current_seed(seed); });
  m.def("random_state", [] { return default_generator().get_state(); });
  m.def("set_random_state", [](const at::Tensor& s) { const_cast<at::Generator&>(default_generator()).set_state(s); });
}
