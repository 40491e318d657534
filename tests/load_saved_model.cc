#include <iostream>
#include "tensorflow/cc/saved_model/loader.h"
int main(int argc, char** argv) {
  tensorflow::SavedModelBundle bundle;
  tensorflow::SessionOptions options;
  options.config.set_allow_soft_placement(true);
  const std::unordered_set<std::string> tags(argv + 2, argv + argc);
  auto status = tensorflow::LoadSavedModel(options, tensorflow::RunOptions(), argv[1], tags, &bundle);
  if (!status.ok()) { std::cerr << status.ToString() << std::endl; return 1; }
  const auto& signature = bundle.GetSignatures().at("raw:serving_default");
  tensorflow::Tensor x(tensorflow::DT_FLOAT, tensorflow::TensorShape({1, 2}));
  x.flat<float>()(0) = 3.0f;
  x.flat<float>()(1) = 1.0f;
  std::vector<tensorflow::Tensor> out;
  status = bundle.GetSession()->Run(
      {{signature.inputs().at("x").name(), x}}, {signature.outputs().at("word").name()}, {}, &out);
  if (!status.ok()) { std::cerr << status.ToString() << std::endl; return 1; }
  std::cout << out[0].flat<tensorflow::tstring>()(0) << std::endl;
}
