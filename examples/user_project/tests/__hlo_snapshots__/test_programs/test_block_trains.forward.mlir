module @forward {
  func.func public @main(%arg0: tensor<256xbf16>, %arg1: tensor<128x256xbf16>, %arg2: tensor<1024x256xbf16>, %arg3: tensor<1024x256xbf16>, %arg4: tensor<256x1024xbf16>) -> (tensor<128x256xbf16>, tensor<128x1xf32>, tensor<128x256xbf16>, tensor<128x1024xbf16>, tensor<128x1024xbf16>, tensor<128x1024xbf16>) {
    %0 = stablehlo.convert %arg1 : (tensor<128x256xbf16>) -> tensor<128x256xf32>
    %1 = stablehlo.multiply %0, %0 : tensor<128x256xf32>
    %2 = stablehlo.constant dense<0.0> : tensor<f32>
    %3 = stablehlo.reduce(%1 init: %2) applies stablehlo.add across dimensions = [1] : (tensor<128x256xf32>, tensor<f32>) -> tensor<128xf32>
    %4 = stablehlo.constant dense<256.0> : tensor<128xf32>
    %5 = stablehlo.divide %3, %4 : tensor<128xf32>
    %6 = stablehlo.reshape %5 : (tensor<128xf32>) -> tensor<128x1xf32>
    %7 = stablehlo.constant dense<1.1920929e-7> : tensor<128x1xf32>
    %8 = stablehlo.add %6, %7 : tensor<128x1xf32>
    %9 = stablehlo.rsqrt %8 : tensor<128x1xf32>
    %10 = stablehlo.broadcast_in_dim %9, dims = [0, 1] : (tensor<128x1xf32>) -> tensor<128x256xf32>
    %11 = stablehlo.multiply %0, %10 : tensor<128x256xf32>
    %12 = stablehlo.convert %arg0 : (tensor<256xbf16>) -> tensor<256xf32>
    %13 = stablehlo.broadcast_in_dim %12, dims = [1] : (tensor<256xf32>) -> tensor<128x256xf32>
    %14 = stablehlo.multiply %11, %13 : tensor<128x256xf32>
    %15 = stablehlo.convert %14 : (tensor<128x256xf32>) -> tensor<128x256xbf16>
    %16 = stablehlo.dot_general %15, %arg2, contracting_dims = [1] x [1], precision = [DEFAULT, DEFAULT] : (tensor<128x256xbf16>, tensor<1024x256xbf16>) -> tensor<128x1024xbf16>
    %17 = stablehlo.convert %16 : (tensor<128x1024xbf16>) -> tensor<128x1024xf32>
    %18 = stablehlo.logistic %17 : tensor<128x1024xf32>
    %19 = stablehlo.multiply %17, %18 : tensor<128x1024xf32>
    %20 = stablehlo.convert %19 : (tensor<128x1024xf32>) -> tensor<128x1024xbf16>
    %21 = stablehlo.dot_general %15, %arg3, contracting_dims = [1] x [1], precision = [DEFAULT, DEFAULT] : (tensor<128x256xbf16>, tensor<1024x256xbf16>) -> tensor<128x1024xbf16>
    %22 = stablehlo.multiply %20, %21 : tensor<128x1024xbf16>
    %23 = stablehlo.dot_general %22, %arg4, contracting_dims = [1] x [1], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<256x1024xbf16>) -> tensor<128x256xbf16>
    %24 = stablehlo.add %arg1, %23 : tensor<128x256xbf16>
    return %24, %9, %15, %16, %21, %22 : tensor<128x256xbf16>, tensor<128x1xf32>, tensor<128x256xbf16>, tensor<128x1024xbf16>, tensor<128x1024xbf16>, tensor<128x1024xbf16>
  }
}
