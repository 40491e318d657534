/* An op library for tests: PlusOne adds 1 to each float. Written against TensorFlow's C API: compiles at once.
 * BUILD tells one build of it from another. */
#include <stdint.h>

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"

extern "C" const int build = BUILD;

static void Compute(void* kernel, TF_OpKernelContext* context) {
  TF_Status* status = TF_NewStatus();
  TF_Tensor* given = nullptr;
  TF_GetInput(context, 0, &given, status);
  int64_t shape[8], count = TF_TensorElementCount(given);
  for (int axis = 0; axis < TF_NumDims(given); ++axis) shape[axis] = TF_Dim(given, axis);
  TF_Tensor* answer = TF_AllocateOutput(context, 0, TF_FLOAT, shape, TF_NumDims(given), count * 4, status);
  const float* from = static_cast<const float*>(TF_TensorData(given));
  float* to = static_cast<float*>(TF_TensorData(answer));
  for (int64_t index = 0; index < count; ++index) to[index] = from[index] + 1;
  TF_DeleteTensor(given);
  TF_DeleteTensor(answer);
  TF_DeleteStatus(status);
}

static void* Create(TF_OpKernelConstruction* construction) { return nullptr; }
static void Delete(void* kernel) {}
static void Shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

__attribute__((constructor)) static void Register(void) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder("PlusOne");
  TF_OpDefinitionBuilderAddInput(op, "x: float");
  TF_OpDefinitionBuilderAddOutput(op, "y: float");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, Shape);
  TF_RegisterOpDefinition(op, status);
  TF_KernelBuilder* kernel = TF_NewKernelBuilder("PlusOne", "CPU", Create, Compute, Delete);
  TF_RegisterKernelBuilder("PlusOne", kernel, status);
  TF_DeleteStatus(status);
}
